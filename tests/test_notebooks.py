"""Notebooks: alike with their scripts, without stale outputs, and they run."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
import sync  # noqa: E402

STEMS = [script.stem for script in sync.SCRIPTS]
PICTURE, PICTURES = 150_000, 1_500_000  # bytes: of one, and of all together


def read(stem):
    return nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)


def pictures(notebook):
    return [o for c in notebook.cells for o in c.get("outputs", ())]


def test_each_script_has_a_notebook_and_each_notebook_a_script():
    assert len(STEMS) == 8
    assert STEMS == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("stem", STEMS)
def test_the_notebook_says_what_its_script_says(stem):
    script, notebook = FOLDER / f"{stem}.py", read(stem)
    how = "write it anew: python notebooks/sync.py"
    assert script.read_text() == sync.with_badge(script), how
    expected = sync.from_script(script)
    assert notebook.metadata == expected.metadata, how
    for mine, theirs in zip(notebook.cells, expected.cells, strict=True):
        assert {**mine, "outputs": []} == {**theirs, "outputs": []}, how


@pytest.mark.parametrize("stem", STEMS)
def test_nothing_but_small_pictures_is_kept(stem):
    notebook = read(stem)
    nbformat.validate(notebook)
    for output in pictures(notebook):
        assert list(output.data) == [sync.PNG]
        assert len(output.data[sync.PNG]) < PICTURE
    drawn = [c for c in notebook.cells if "plt.show()" in c.source]
    assert len(pictures(notebook)) == len(drawn), "run python notebooks/sync.py --run"


def test_pictures_are_small_together():
    kept = [o.data[sync.PNG] for stem in STEMS for o in pictures(read(stem))]
    assert sum(map(len, kept)) < PICTURES


@pytest.mark.parametrize("stem", STEMS)
def test_it_opens_in_colab_and_begins_with_one_guarded_install(stem):
    title, install, *rest = read(stem).cells
    assert title.source.startswith("# ")
    assert sync.badge(FOLDER / f"{stem}.py") in title.source
    guard, line, last = install.source.splitlines()[-3:]
    assert guard.startswith('if importlib.util.find_spec("jaxpool") is None:')
    assert line.startswith("    %pip install -q ")
    assert "jaxpool" in line
    assert last == "    importlib.invalidate_caches()"
    assert not any("pip install -" in c.source for c in rest if c.cell_type == "code")


def test_badges_lead_to_the_repository_once_it_has_an_address(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    project = '[project]\nurls = {Repository = "https://github.com/me/it.git"}\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(sync, "FOLDER", tmp_path / "notebooks")
    link = f"({sync.COLAB}/github/me/it/blob/main/notebooks/01_quickstart.ipynb)"
    assert sync.badge(Path("01_quickstart.py")).endswith(link)


@pytest.mark.parametrize("stem", STEMS)
def test_it_runs_from_top_to_bottom(stem, monkeypatch, request):
    """In a process of its own: the kernel's libraries warn."""
    if stem == "06_from_pytorch":
        pytest.importorskip("torch")
    if stem == "08_deploy":
        pytest.importorskip("litert_converter")
    monkeypatch.setenv("JAXPOOL_FAST", "1")
    if not request.config.getoption("full"):  # as `quick_compilation`
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    code = (
        "import sys, sync\n"
        "script = sync.FOLDER / f'{sys.argv[1]}.py'\n"
        "sync.execute(sync.from_script(script))"
    )
    command = [sys.executable, "-c", code, stem]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
