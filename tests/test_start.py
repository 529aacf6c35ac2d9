import pytest

from raybal import start
from raybal.config import LoopConfig
from raybal.errors import ConfigError, DataError, StoreError
from raybal.loop import run_loop
from raybal.settings import from_plain
from raybal.study.config import StudyConfig
from raybal.study.run import run_study
from raybal.table.config import TableConfig
from raybal.table.run import run_table

NO_INPUT = r"^source\.input: this key is missing"
NO_POOL = "nowhere .*is not a prepared pool"
FOREIGN = "is not the store of an? (experiment|study|table)"


@pytest.mark.parametrize(
    ("run", "kind", "changes", "error", "message"),
    [
        (run_loop, LoopConfig, {"pool": "nowhere"}, DataError, NO_POOL),
        (run_study, StudyConfig, {"pool": "nowhere"}, DataError, NO_POOL),
        (run_table, TableConfig, {"pool": "nowhere"}, DataError, NO_POOL),
        (run_table, TableConfig, {"source": {"preprocessing": {"video": {"frames": 5}}}}, ConfigError, NO_INPUT),
        (run_table, TableConfig, {"pool": "nowhere", "source": {"test_share": 0.3}}, ConfigError, NO_INPUT),
        (run_table, TableConfig, {"source": {"input": "somewhere"}}, ConfigError, "^pool: this key is missing"),
        (run_loop, LoopConfig, {"store": "{foreign}"}, StoreError, FOREIGN),
        (run_study, StudyConfig, {"store": "{foreign}"}, StoreError, FOREIGN),
        (run_table, TableConfig, {"store": "{foreign}"}, StoreError, FOREIGN),
    ],
)
def test_what_is_wrong_is_said_before_a_cluster_is_started(tmp_path, monkeypatch, run, kind, changes, error, message):
    monkeypatch.setattr(start, "cluster", None)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("mine")
    given = {"store": "{store}", **changes}
    places = {"{store}": str(tmp_path / "store"), "{foreign}": str(tmp_path / "foreign")}
    with pytest.raises(error, match=message):
        run(from_plain(kind, {**given, "store": places[given["store"]]}))
