import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, chains_location, index_location, samples_location
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.runs import stage_data
from rdmldg_ray.runs.plan import count_samples
from rdmldg_ray.runs.stage_data import Coverage, StageData
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.storage import StorageError, read_table, write_table

MTCT, ROUND = Stage("paint", "mtct", 0), Stage("paint", "train", 1)


@pytest.fixture(scope="module")
def iconbed(store, info, tmp_path_factory):
    """The embedded data set on a storage where the domain ``paint`` has no samples any more."""
    root = tmp_path_factory.mktemp("without_paint")
    shutil.copytree(Path(store) / "datasets", root / "datasets")
    shutil.rmtree(samples_location(str(root), info.name, "paint"))
    shutil.rmtree(index_location(str(root), info.name, "paint"))
    shutil.rmtree(chains_location(str(root), info.name, "rules", "paint"))
    settings = load_config("demo", ["data.held_out=paint", "sarr.without_chain=drop"]).model_copy(
        update={"storage": str(root)}
    )
    return StageData(settings, info)


def test_training_sees_the_sources_in_parts_without_opening_the_held_out_domain(iconbed, store, info):
    training_set, left_out = iconbed.training_set(MTCT)
    expected = set()
    for number, domain in enumerate(info.environments):
        if domain != "paint":
            ids = read_table(samples_location(store, info.name, domain), ["id"])["id"].to_pylist()
            expected |= {ids[position] for position in split_indices(len(ids), 0, number)[0]}
    assert set(training_set["id"].to_pylist()) == expected
    assert len(training_set) == len(expected) == count_samples(iconbed.config, info, MTCT)
    assert left_out == 0
    assert {column.num_chunks for column in training_set.columns} == {1}  # what rows are quickly taken from
    chains = read_table(chains_location(store, info.name, "rules"), ["id", "text"]).to_pylist()
    texts = {row["id"]: row["text"] for row in chains}
    for row in training_set.to_pylist():
        assert row["chain"] == texts[row["id"]]


def chain_of(id):
    return render_chain(dict.fromkeys(SECTIONS, id))


def write_selected(iconbed, *ids):
    selected = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "candidate": pa.array([0] * len(ids), pa.int64()),
            "text": pa.array([chain_of(id) for id in ids], pa.string()),
            "accepted": pa.array([True] * len(ids), pa.bool_()),
        }
    )
    store = RunStore(iconbed.config.storage, iconbed.config.name)
    write_table(f"{store.uri}/paint/sarr-1/selected/part-00000.parquet", selected)


def with_setting(iconbed, **settings):
    sarr = iconbed.config.sarr.model_copy(update=settings)
    config = iconbed.config.model_copy(update={"sarr": sarr})
    return StageData(config, iconbed.info)


def test_a_round_trains_on_the_kept_candidates_of_the_sources_alone(iconbed):
    ids = iconbed.source_index("paint", "in")["id"].to_pylist()
    out = iconbed.source_index("paint", "out")["id"].to_pylist()
    write_selected(iconbed, ids[5], ids[2], out[0], "iconbed/paint/bird/x.png")
    own, left_out = iconbed.training_set(ROUND)
    assert left_out == len(ids) - 2
    assert own["id"].to_pylist() == [ids[2], ids[5]]
    assert own["chain"].to_pylist() == [chain_of(ids[2]), chain_of(ids[5])]


def test_images_without_a_chain_may_get_the_teachers_or_stay_with_their_label(iconbed, store, info):
    ids = iconbed.source_index("paint", "in")["id"].to_pylist()
    write_selected(iconbed, ids[3])
    teachers = read_table(chains_location(store, info.name, "rules"), ["id", "text"]).to_pylist()
    texts = {row["id"]: row["text"] for row in teachers}
    for without_chain in ("teacher", "labels"):
        own, left_out = with_setting(iconbed, without_chain=without_chain).training_set(ROUND)
        own = own.to_pylist()
        assert left_out == 0
        assert sorted(row["id"] for row in own) == sorted(ids)
        for row in own:
            others = texts[row["id"]] if without_chain == "teacher" else None
            assert row["chain"] == (chain_of(ids[3]) if row["id"] == ids[3] else others)


def test_a_teachers_chain_that_is_too_long_is_left_out_of_rounds_too(store, info, tmp_path):
    shutil.copytree(Path(store) / "datasets", tmp_path / "datasets")
    tokens = ["sarr.max_new_tokens=9", "evaluation.max_new_tokens=9", "sarr.without_chain=teacher"]
    strict = [*tokens, "model.max_length=150", "data.long_chains=drop", f"storage={tmp_path}"]
    data = StageData(load_config("demo", strict), info)
    ids = data.source_index("paint", "in")["id"].to_pylist()
    write_selected(data, ids[3])
    of_mtct, _ = data.training_set(MTCT)
    own, left_out = data.training_set(ROUND)
    assert 0 < left_out < len(ids) and left_out == len(ids) - len(own)
    assert set(own["id"].to_pylist()) == {*of_mtct["id"].to_pylist(), ids[3]}


@pytest.mark.parametrize(
    ("text", "may_be_long"),
    [
        ("a" * 512, False),
        ("a" * 513, True),
        ("\u72d7" * 102, False),
        ("\u72d7" * 103, True),
        ("\u0434" * 170, False),
        ("\u0434" * 171, True),
        ("\U0001f415" * 74, True),
    ],
)
def test_whether_a_chain_may_be_too_long_depends_on_its_bytes(text, may_be_long):
    assert (stage_data._reach(pa.chunked_array([[text]])).to_pylist() > [512]) == may_be_long


def test_a_round_that_keeps_no_chain_goes_on_with_what_was_asked_for_or_says_so(iconbed):
    ids = iconbed.source_index("paint", "in")["id"].to_pylist()
    write_selected(iconbed)
    for without_chain, chains in (("teacher", len(ids)), ("labels", 0)):
        own = with_setting(iconbed, without_chain=without_chain).training_set(ROUND)[0]
        assert sorted(own["id"].to_pylist()) == sorted(ids)
        assert own["chain"].is_valid().to_pylist().count(True) == chains
    with pytest.raises(
        ValueError, match=r"sarr-1/selected: no sample .* see sarr.filter, .* sarr.without_chain"
    ):
        iconbed.training_set(ROUND)


def test_chains_are_checked_as_a_training_reads_them(iconbed, tmp_path):
    shutil.copytree(Path(iconbed.config.storage) / "datasets", tmp_path / "datasets")
    data = StageData(iconbed.config.model_copy(update={"storage": str(tmp_path)}), iconbed.info)
    rules = Path(chains_location(str(tmp_path), "iconbed", "rules"))
    gradient, sketch, flat = (rules / domain for domain in ("gradient", "sketch", "flat"))
    data.check_chains(MTCT)
    shutil.rmtree(gradient)
    data.check_chains(MTCT)
    training = set(data.source_index("paint", "in")["id"].to_pylist())

    def rewrite(folder, change):
        [location] = map(str, folder.glob("*.parquet"))
        rows = read_table(location)
        changed = [row | change if row["id"] in training else row for row in rows.to_pylist()]
        write_table(location, pa.Table.from_pylist(changed, rows.schema))

    rewrite(sketch, {"accepted": False})
    data.check_chains(MTCT)
    rewrite(flat, {"text": "It is a bird."})
    with pytest.raises(ValueError, match=r"rules/flat: row iconbed/flat/.*: the chain has no <SUMMARY>"):
        data.check_chains(MTCT)
    rewrite(flat, {"accepted": False})
    with pytest.raises(ValueError, match="rules: no sample of the source domains has an accepted chain"):
        data.check_chains(MTCT)
    for folder in (sketch, flat):
        shutil.rmtree(folder)
    with pytest.raises(StorageError, match="rules: no chains for flat, gradient, sketch; choose another"):
        data.check_chains(MTCT)


def test_evaluation_sees_all_of_the_target_and_the_sources_out_parts(store, info):
    settings = load_config("demo").model_copy(update={"storage": store})
    rows = StageData(settings, info).evaluation_set("flat").to_pylist()
    groups = {(row["domain"], row["split"], row["held_out"]) for row in rows}
    assert groups == {("flat", "in", True), ("flat", "out", True)} | {
        (domain, "out", False) for domain in ("gradient", "paint", "sketch")
    }
    assert len({row["id"] for row in rows}) == len(rows) == 287 + 3 * 57
    assert sum(row["split"] == "in" for row in rows) == 230


def test_a_fold_of_two_domains_reads_only_the_others(store, info):
    settings = load_config("demo").model_copy(update={"storage": store})
    data = StageData(settings, info)
    assert set(data.source_index("flat+paint", "in")["domain"].to_pylist()) == {"gradient", "sketch"}
    rows = data.evaluation_set("flat+paint").to_pylist()
    assert {row["domain"] for row in rows if row["held_out"]} == {"flat", "paint"}
    assert len(rows) == 2 * 287 + 2 * 57


def test_base_classes_alone_are_trained_and_validated_on_and_all_are_tested(store, info):
    settings = load_config("demo", ["data.classes=base"]).model_copy(update={"storage": store})
    data = StageData(settings, info)
    base = set(info.classes[:6])
    for part in ("in", "out"):
        assert set(data.source_index("flat", part)["label"].to_pylist()) == base
    assert set(data.training_set(Stage("flat", "mtct", 0))[0]["label"].to_pylist()) == base
    rows = data.evaluation_set("flat").to_pylist()
    assert {row["label"] for row in rows if row["held_out"]} == set(info.classes)
    assert {row["label"] for row in rows if not row["held_out"]} == base


def test_classes_that_no_chain_is_of_are_told(tmp_path, store, info, caplog):
    shutil.copytree(Path(store) / "datasets", tmp_path / "datasets")
    config = load_config("demo", ["data.held_out=paint", f"storage={tmp_path}"])
    data = StageData(config, info)
    assert data.check_chains(MTCT) == Coverage((), long=False)
    kept = {}
    for domain in ("flat", "gradient", "sketch"):
        chains = read_chains(str(tmp_path), info.name, "rules", [domain]).to_pylist()
        rows = [row for row in chains if "/bird/" not in row["id"]]
        kept[domain] = pa.Table.from_pylist(rows, CHAIN_SCHEMA)
    write_chains(str(tmp_path), info.name, "rules", kept)
    assert data.check_chains(MTCT).without == ("bird",)
    assert not caplog.records, "whoever starts a run names them, once"


def test_a_split_without_images_is_told_before_anything_is_trained(iconbed, store, info):
    config = iconbed.config.model_copy(update={"storage": store})
    assert len(StageData(config, info).evaluation_set("paint"))
    none = config.model_copy(update={"data": config.data.model_copy(update={"holdout_fraction": 0.001})})
    with pytest.raises(ValueError, match=r"'out' split of the source domains has no image to evaluate on"):
        StageData(none, info).evaluation_set("paint")


def test_a_class_that_lost_its_chains_is_told_before_a_run_starts(iconbed, info, caplog):
    lost = info.classes[0]
    for domain in info.environments:
        if domain != "paint":
            rows = read_table(chains_location(iconbed.config.storage, info.name, "rules", domain)).to_pylist()
            few = {row["id"] for row in rows if f"/{lost}/" in row["id"]}
            few -= set(sorted(few)[:2])
            rows = [row | {"accepted": row["id"] not in few} for row in rows]
            part = (
                f"{chains_location(iconbed.config.storage, info.name, 'uneven', domain)}/part-00000.parquet"
            )
            write_table(part, pa.Table.from_pylist(rows))
    iconbed.check_chains(MTCT)
    assert not caplog.records
    data = iconbed.config.data.model_copy(update={"chains": "uneven"})
    uneven = StageData(iconbed.config.model_copy(update={"data": data}), info)
    uneven.check_chains(MTCT)
    [record] = caplog.records
    assert "paint held out: classes lose images unequally" in record.getMessage()
    assert f"of '{lost}', and 0 of " in record.getMessage()
