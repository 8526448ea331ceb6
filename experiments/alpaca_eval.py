"""AlpacaEval 2's win rates, plain and length-controlled (arXiv 2501.12948, table 8), from a judge's verdicts.

`r1jax eval --benchmark alpaca_eval` writes what the judge takes; `python experiments/alpaca_eval.py --help` lists the
settings.
"""

from r1jax.errors import exit_on_error


def main(annotations: str, difficulty: str | None = None, gamed: str | None = None) -> None:
    """Print the win rates of the model whose outputs are output_2.

    Args:
        annotations: the judge's annotations.json.
        difficulty: instruction_difficulty.csv from the hub's tatsu-lab/alpaca_eval; without it the regression has no
            such term.
        gamed: df_gamed.csv from there; without it nothing holds the coefficients where lengths hardly differ.
    """
    from r1jax.data.sources import read_rows
    from r1jax.evaluation.benchmarks.alpaca_eval import read_difficulties, read_verdicts, win_rates

    rates = win_rates(
        read_verdicts(annotations),
        None if difficulty is None else read_difficulties(difficulty),
        () if gamed is None else read_rows(gamed),
    )
    # Without difficulties the regression predicts one number for all instructions, which has no spread.
    spread = f" ± {rates.length_controlled_standard_error:.2f}" if difficulty is not None else ""
    print(f"win rate                    {rates.win_rate:6.2f}% ± {rates.standard_error:.2f}")
    print(f"length-controlled win rate  {rates.length_controlled:6.2f}%{spread}")
    print(f"verdicts                    {rates.verdicts:,}")


if __name__ == "__main__":
    with exit_on_error():
        import tyro

        tyro.cli(main, prog="python experiments/alpaca_eval.py")
