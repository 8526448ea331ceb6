"""Eight simulated devices and a compilation cache, set before anything imports JAX."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# XLA only reads its flags once, so another count already chosen by the caller (a CI job) is left alone.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = flags.strip()

# Compiling is most of what the tests do, and their programs are tiny: they are compiled without LLVM's optimisations.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

import jax

jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
