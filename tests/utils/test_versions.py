"""Versions of what numbers depend on."""

from utils.versions import versions


def test_versions_name_what_numbers_depend_on():
    found = versions()
    assert found["scikit-learn"][0].isdigit()
    assert found["python"].startswith("3.")
