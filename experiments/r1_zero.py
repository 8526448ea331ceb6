"""R1-Zero (arXiv 2501.12948, section 2 and figures 1 to 3): `python experiments/r1_zero.py --help` lists every setting.

On a laptop this pretrains a miniature base model, then lets reinforcement learning discover that working step by step
pays: minutes, on two CPU cores. It goes on where it was stopped, and ends by printing the path of report.html.
"""

from r1jax.errors import exit_on_error
from r1jax.runtime import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    with exit_on_error():
        from r1jax.recipes import r1_zero
        from r1jax.recipes.config import parse_r1_zero

        r1_zero.run(parse_r1_zero(prog="python experiments/r1_zero.py"))
