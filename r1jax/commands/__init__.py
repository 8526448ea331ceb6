"""What the `r1jax` command runs besides the recipes: models in and out, and talking to them."""
