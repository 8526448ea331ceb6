"""The whole R1 recipe (arXiv 2501.12948, figure 2 and table 3): `python experiments/r1.py --help` lists every setting.

On a laptop this runs the miniature, stage by stage. It goes on where it was
stopped, and ends by printing the path of report.html.
"""

from r1jax.errors import exit_on_error
from r1jax.runtime import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    with exit_on_error():
        from r1jax.recipes.r1 import chain
        from r1jax.recipes.r1.config import parse_r1

        chain.run(*parse_r1(prog="python experiments/r1.py"))
