"""Every test runs with JAX at its strictest, on two (virtual) devices."""

import os
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.export
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="ask the slow questions of every op"
    )


def pytest_configure(config):
    """Processes that share the tests compile each program once for all of them."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # of the user, or of what started us
        return
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    later = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=later)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_terminal_summary(terminalreporter):
    """Prints what tests recorded as `summary`, also where they pass."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name == "summary":
                        terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """A module's, which are let go of after it.

    Each is some memory maps, of which Linux gives a process 65,530, and XLA crashes
    where it gets no more.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """64-bit types for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def quick_compilation(request):
    """Less optimisation by XLA, in a third less of time; all of it with `--full`."""
    quick = not request.config.getoption("full")
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
