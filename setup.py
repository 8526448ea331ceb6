"""Packaging. Version ranges are those the test suite has been run with; the README says why each package is here."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "r1jax/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

setup(
    name="r1jax",
    version=VERSION,
    description="DeepSeek-R1, whole, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["r1jax", "r1jax.*"]),
    package_data={"r1jax.evaluation": ["*.j2"]},
    install_requires=[
        "jax>=0.10,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "chex>=0.1.92,<0.2",
        "tensorflow-datasets>=4.9.10,<4.10",
        "array_record>=0.8.3,<0.9",
        "sentencepiece>=0.2.1,<0.3",
        "tokenizers>=0.22,<0.24",
        "grain>=0.2.18,<0.3",
        "jaxtyping>=0.3.11,<0.4",
        "math-verify[antlr4_13_2]>=0.9,<0.10",
        "py3langid>=0.4,<0.5",
        "huggingface_hub>=1,<3",
        "pyarrow>=21",
        "tyro>=1.0.17,<2",
        "rich>=14,<16",
        "tensorboardX>=2.6.5,<3",
        "matplotlib>=3.10,<4",
        "jinja2>=3.1.6,<4",
        "etils[epath]>=1.13,<2",
        "numpy>=2.1",
        "ml_dtypes>=0.5",
    ],
    extras_require={
        "test": ["pytest>=9,<10", "pytest-xdist>=3.8,<4", "hypothesis>=6.150,<7", "ruff>=0.17,<0.18"],
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "cuda": ["jax[cuda13]>=0.10,<0.11"],
        "parity": ["torch>=2.7,<3", "transformers>=5.20,<6"],
        "bench": ["py-spy>=0.4,<0.5"],
    },
    entry_points={"console_scripts": ["r1jax=r1jax.cli:start"]},
)
