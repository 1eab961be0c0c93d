import pytest

from clusterray import errors


def test_exit_codes_part_usage_from_failure() -> None:
    codes = {
        name: getattr(errors, name).exit_code for name in errors.__all__ if name.endswith("Error")
    }
    assert codes == {
        "ClusterrayError": 1,
        "StorageError": 1,
        "RunError": 1,
        "InputError": 2,
        "ConfigError": 2,
        "ContractError": 2,
        "BundleError": 2,
    }


def test_one_except_clause_catches_them_all() -> None:
    for name in errors.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(errors, name), errors.ClusterrayError)


@pytest.mark.parametrize(
    ("word", "want"),
    [
        ("epohcs", "did you mean 'epochs'?"),
        ("batch", "did you mean 'batch_size'?"),
        ("qqqq", "known: batch_size, epochs"),
        ("", "known: batch_size, epochs"),
    ],
)
def test_did_you_mean(word: str, want: str) -> None:
    assert errors.did_you_mean(word, ["epochs", "batch_size"]) == want


def test_did_you_mean_takes_any_iterable() -> None:
    assert errors.did_you_mean("b", iter({"a": 1, "c": 2})) == "known: a, c"
