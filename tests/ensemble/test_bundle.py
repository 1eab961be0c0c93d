import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clusterray.config import VisionSettings
from clusterray.ensemble import bundle
from clusterray.ensemble.drift_reference import summarise
from clusterray.errors import BundleError
from clusterray.vision import anomaly, vit

STATES = {
    "stacker": {"weights": [0.5, 1.5], "offset": -0.25},
    "calibrator": {"kind": "platt", "a": 1.25, "b": -2.0},
    "posterior": {"n": 3, "a": [1.0, 1.1, 0.9]},
    "prior": {"value": 0.01, "source": "fallback"},
}


def network(n_bands=3, seed=1):
    options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    settings = VisionSettings(model="vit_tiny_patch16_224", model_options=options, image_size_px=32)
    return vit.build(settings, n_bands=n_bands, size_px=32, seed=seed)


def oof_table(models=("lightgbm", "vit"), n=20, seed=0):
    rng = np.random.default_rng(seed)
    columns = {
        "object_id": [f"c{i:03d}" for i in rng.permutation(n)],
        "ra_deg": np.linspace(10.0, 11.0, n),
        "dec_deg": np.linspace(-1.0, 1.0, n),
        "fold": pa.array(rng.integers(-1, 3, n), pa.int8()),
        **{f"logit_{m}": pa.array(rng.normal(size=n), pa.float32()) for m in models},
        "logit_stack": rng.normal(size=n),
    }
    return pa.table(columns)


def contents(models=("lightgbm", "vit"), **changes):
    values = {
        "bands": ("g", "r", "i"),
        "pixel_scale_arcsec": 0.5,
        "size_px": 64,
        "feature_names": ("mean_g", "richness"),
        "models": models,
        "settings": {"asinh_softening": 3.0, "grid": 3},
        "oof": oof_table(models),
        **STATES,
    }
    if "lightgbm" in models:
        values["lightgbm_text"] = "tree\nversion=v4\n"
    if "vit" in models:
        values["vit"] = network()
        embeddings = np.random.default_rng(3).normal(size=(40, 24))
        values["anomaly"] = anomaly.fit(embeddings)
    return values | changes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("bundle") / "b")
    return url, bundle.save(url, **contents(notes=["3 positives: 2 folds"]))


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(saved):
    url, written = saved
    read = bundle.load(url)
    assert read.digest == written.digest == read.manifest["digest"]
    assert read.bands == ("g", "r", "i")
    assert (read.size_px, read.pixel_scale_arcsec) == (64, 0.5)
    assert read.feature_names == ("mean_g", "richness")
    assert read.models == ("lightgbm", "vit")
    assert read.settings == {"asinh_softening": 3.0, "grid": 3}
    assert read.notes == ("3 positives: 2 folds",)
    assert read.lightgbm_text == "tree\nversion=v4\n"
    for name, state in STATES.items():
        assert getattr(read, f"{name}_state") == state
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(read.vit()(images).logit, network().eval()(images).logit)
    assert not read.vit().training
    expected = contents()["anomaly"]
    rows = np.random.default_rng(8).normal(size=(5, 24))
    np.testing.assert_array_equal(read.anomaly().score(rows), expected.score(rows))
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.url = "elsewhere"


def test_out_of_fold_rows_are_sorted(saved):
    ids = bundle.load(saved[0]).oof.column("object_id").to_pylist()
    assert ids == sorted(oof_table().column("object_id").to_pylist())


def test_a_training_row_is_known_by_id_and_place_or_by_place_alone(saved):
    read = bundle.load(saved[0])
    rows = read.oof.to_pylist()
    one, other = rows[7], rows[3]
    # 32 px of 0.5″ are 16″ to the edge of the cutout.
    cases = [
        (one["object_id"], one, 0.0, 7),
        (one["object_id"], one, 15.0, 7),  # the same cluster with a revised centre
        (one["object_id"], one, 40.0, -1),  # another survey's object of that name
        (one["object_id"], other, 1.0, 3),  # the place decides where the name is another's
        ("renamed", one, 1.5, 7),
        ("new", one, 2.5, -1),
    ]
    ids = [c[0] for c in cases]
    place = {
        "ra_deg": np.array([c[1]["ra_deg"] for c in cases]),
        "dec_deg": np.array([c[1]["dec_deg"] + c[2] / 3600 for c in cases]),
    }
    found = read.training_rows(ids, **place)
    assert found.tolist() == [c[3] for c in cases]
    folds = read.folds_of(found)
    assert folds.type == pa.int8()
    assert folds.to_pylist() == [rows[c[3]]["fold"] if c[3] >= 0 else None for c in cases]
    nothing = read.training_rows([], ra_deg=[], dec_deg=[])
    assert read.folds_of(nothing).to_pylist() == []


def test_the_source_of_an_injection_is_another_object(tmp_path):
    """It stands where its injection does, and is scored as what it is: a row never seen."""
    oof = oof_table()
    ids = oof.column("object_id").to_pylist()
    ids[4], ids[5] = "J12+34+lens", "J12+34+off"
    place = {c: oof.column(c).to_numpy().copy() for c in ("ra_deg", "dec_deg")}
    for column in place.values():
        column[5] = column[4]
    for at, values in enumerate((ids, *place.values())):
        oof = oof.set_column(at, oof.column_names[at], pa.array(values))
    read = bundle.save(str(tmp_path), **contents(oof=oof))
    asked = ["J12+34", "J12+34+lens", "J12+34+off", "J99+lens", ids[0]]
    there = {c: np.append(np.full(4, v[4]), v[0]) for c, v in place.items()}
    rows = read.training_rows(asked, **there)
    known = read.oof.column("object_id").to_pylist()
    assert [known[r] if r >= 0 else None for r in rows] == [None, *asked[1:3], None, ids[0]]
    assert read.folds_of(rows).null_count == 2


@pytest.mark.parametrize("models", [("lightgbm",), ("vit",)])
def test_a_bundle_of_one_model(tmp_path, models):
    bundle.save(str(tmp_path), **contents(models))
    read = bundle.load(str(tmp_path))
    assert read.models == models
    if models == ("lightgbm",):
        assert read.anomaly() is None
        with pytest.raises(BundleError, match=r"no 'vit\.safetensors'.*models are lightgbm"):
            read.vit()
    else:
        with pytest.raises(BundleError, match=r"no 'lightgbm\.txt'.*models are vit"):
            _ = read.lightgbm_text


def test_a_second_network_travels_beside_the_first(tmp_path):
    models = ("lightgbm", "vit", "oof")
    second = network(seed=7)
    bundle.save(str(tmp_path), **contents(models, networks={"oof": second}))
    read = bundle.load(str(tmp_path))
    assert read.models == models
    assert read.networks == ("vit", "oof")
    assert read.network("oof").save() == second.save()
    assert read.vit().save() == network().save() != second.save()
    with pytest.raises(BundleError, match=r"no 'network_resnet\.safetensors'"):
        read.network("resnet")
    with pytest.raises(BundleError, match=r"but given were \(lightgbm, vit\)"):
        bundle.save(str(tmp_path / "b"), **contents(models))
    wrong = {"oof": network(n_bands=4)}
    with pytest.raises(BundleError, match="has 4 bands"):
        bundle.save(str(tmp_path / "c"), **contents(models, networks=wrong))


def test_nothing_is_pickled(saved):
    for path in Path(saved[0]).iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
            pickle.loads(path.read_bytes())  # our own bytes, to see that they are no pickle


def test_the_digest_forgets_what_changes_no_output(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("CLUSTERRAY_GIT_STATE", "another commit")
    shuffled = oof_table().take(pa.array(np.random.default_rng(4).permutation(20)))
    again = bundle.save(str(tmp_path), **contents(notes=["other"], oof=shuffled))
    assert again.digest == saved[1].digest
    assert again.manifest["created"]["commit"] == "another commit"


@pytest.mark.parametrize(
    "change",
    [
        {"bands": ("r", "g", "i")},
        {"size_px": 65},
        {"pixel_scale_arcsec": 0.4},
        {"feature_names": ("richness", "mean_g")},
        {"models": ("vit", "lightgbm")},
        {"settings": {"asinh_softening": 2.0, "grid": 3}},
        {"stacker": STATES["stacker"] | {"offset": 0.0}},
        {"calibrator": STATES["calibrator"] | {"a": 1.0}},
        {"lightgbm_text": "tree\nversion=v5\n"},
        {"vit": network(seed=2)},
        {"anomaly": None},
        {"oof": oof_table(seed=1)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_the_digest_follows_what_changes_an_output(saved, tmp_path, change):
    assert bundle.save(str(tmp_path), **contents(**change)).digest != saved[1].digest


@pytest.mark.parametrize(
    "name",
    ["vit.safetensors", "vit.json", "lightgbm.txt", "stacker.json", "calibrator.json",
     "posterior.json", "prior.json", "anomaly.safetensors", "oof.parquet", "notes.json"],
)  # fmt: skip
def test_every_file_is_missed_and_checked(copy, name):
    path = copy / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"'{name}' was altered.*expected .*train again"):
        bundle.load(str(copy))
    path.unlink()
    with pytest.raises(BundleError, match=f"'{name}' is missing"):
        bundle.load(str(copy))


def test_without_its_manifest_a_folder_is_no_bundle(copy, tmp_path):
    (copy / "manifest.json").unlink()
    for url in (copy, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match=r"holds no manifest\.json.*cut short"):
            bundle.load(str(url))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "zip"}, "not the manifest of a bundle"),
        ({"format_version": 3}, "format version 3, this release reads 2"),
        ({"schema_versions": {"cutouts": 1, "features": 9, "scores": 1}}, "features.*version 9"),
        ({"schema_versions": {"cutouts": 1, "scores": 1}}, "features tables of version None"),
        ({"schema_versions": {"cutouts": 1, "features": 2, "scores": 1, "x": 1}}, "x tables"),
        ({"bands": ["r", "g", "i"]}, r"manifest\.json was altered: digest"),
        ({"models": ["lightgbm", "gan"]}, "does not list 'network_gan.safetensors'"),
        ({"files": {}}, r"does not list 'oof\.parquet'"),
        ({"digest": "0" * 64}, "was altered"),
    ],
)
def test_an_altered_manifest(copy, change, match):
    edit_manifest(copy, **change)
    with pytest.raises(BundleError, match=match):
        bundle.load(str(copy))


def test_a_manifest_may_not_name_files_outside(copy):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit_manifest(copy, files=files | {"../secret": "00"})
    with pytest.raises(BundleError, match=r"'\.\./secret', no file of a bundle"):
        bundle.load(str(copy))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "clusterray-bundle", "format_version": 1}']
)
def test_a_broken_manifest(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="bundle"):
        bundle.load(str(copy))


def test_saving_was_cut_short(tmp_path, monkeypatch):
    from clusterray import storage

    def failing(url, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_json", failing)
    with pytest.raises(KeyboardInterrupt):
        bundle.save(str(tmp_path), **contents(("lightgbm",)))
    with pytest.raises(BundleError, match="cut short"):
        bundle.load(str(tmp_path))


def repeated(table):
    return pa.concat_tables([table, table.slice(0, 1)])


def not_finite(table):
    values = table.column("logit_vit").to_numpy().copy()
    values[3] = np.nan
    at = table.column_names.index("logit_vit")
    return table.set_column(at, "logit_vit", pa.array(values))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lightgbm_text": None}, r"models are \(lightgbm, vit\), but given were \(vit\)"),
        ({"vit": None, "anomaly": None}, r"but given were \(lightgbm\)"),
        ({"models": ("vit", "vit", "lightgbm")}, "name each model once"),
        ({"bands": ("g", "r")}, "network has 3 bands, the cutouts 2"),
        ({"oof": oof_table(("vit",))}, "expected.*logit_lightgbm float"),
        ({"oof": oof_table().drop(["fold"])}, "expected.*fold int8"),
        ({"oof": repeated(oof_table())}, "1 ids in 'object_id' stand more than once"),
        ({"oof": not_finite(oof_table())}, "1 out-of-fold scores in 'logit_vit' are not finite"),
    ],
)
def test_save_refuses(tmp_path, change, match):
    with pytest.raises(BundleError, match=match):
        bundle.save(str(tmp_path), **contents(**change))
    assert not (tmp_path / "manifest.json").exists()


def test_oof_of_a_foreign_parquet_file(copy):
    from clusterray.provenance import digest

    pq.write_table(pa.table({"a": [1]}), copy / "oof.parquet")
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit_manifest(copy, files=files | {"oof.parquet": digest((copy / "oof.parquet").read_bytes())})
    with pytest.raises(BundleError, match="out-of-fold scores have a int64"):
        bundle.load(str(copy))


def test_an_empty_remote_location():
    with pytest.raises(BundleError, match="holds no manifest"):
        bundle.load("memory://nowhere/bundle")


def test_the_models_of_a_bundle_are_built_from_their_states(tmp_path):
    from clusterray.pu.lightgbm_pu import PULightGBM

    rng = np.random.default_rng(2)
    features, s = rng.normal(size=(120, 2)), (np.arange(120) < 12).astype(np.int8)
    features[:24] += 2
    model = PULightGBM(("mean_g", "richness"), scenario="single-sample", prior=0.2, seed=1)
    model.fit(features, s, names=("mean_g", "richness"), groups=np.arange(120) % 12)
    stacker = {
        "kind": "logistic", "models": ["lightgbm", "vit"], "penalty": 1.0,
        "coef": [0.5, 2.0], "intercept": -1.0, "context": [], "context_coef": [],
        "context_median": [],
    }  # fmt: skip
    calibrator = {
        "kind": "platt", "parameters": [2.0, 2.0, -0.5], "scenario": "single-sample", "prior": 0.2,
        "labelled_fraction": 0.1, "unlabelled_fraction": 1.0,
    }  # fmt: skip
    posterior = {
        "stacker": stacker, "calibrator": calibrator, "coef": [[0.5, 2.0], [0.6, 1.9]],
        "intercept": [-1.0, -1.1], "curves": [[2.0, 2.0, -0.5], [2.1, 2.1, -0.4]],
        "prior": [0.2, 0.21], "choice": {"kind": "platt", "loss": {}, "scatter": {}, "note": ""},
    }  # fmt: skip
    states = {"stacker": stacker, "calibrator": calibrator, "posterior": posterior}
    bundle.save(str(tmp_path), **contents(lightgbm_text=model.to_text(), **states))
    read = bundle.load(str(tmp_path))
    names = ("mean_g", "richness")
    np.testing.assert_array_equal(
        read.lightgbm.decision_function(features, names), model.decision_function(features, names)
    )
    eta = read.stacker.decision_function(np.array([[1.0, 2.0]]))
    np.testing.assert_allclose(eta, 3.5)
    np.testing.assert_allclose(read.calibrator.predict_proba(eta), 1 / (1 + np.exp(-6.5)))
    p, low, high = read.posterior.interval(np.array([[1.0, 2.0]]))
    assert low <= p <= high


def test_the_drift_reference_comes_back_and_changes_no_score(saved, tmp_path):
    assert saved[1].drift_reference is None
    reference = summarise({("psf", "psf_fwhm_arcsec_g"): [0.7, 0.8, float("nan")]})
    url = str(tmp_path / "b")
    made = bundle.save(url, **contents(drift_reference=reference))
    assert made.digest == saved[1].digest
    assert bundle.load(url).drift_reference.equals(reference)
    (tmp_path / "b" / "drift.parquet").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"'drift\.parquet' was altered"):
        bundle.load(url)
