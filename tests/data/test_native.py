"""Without the extension, or with one of another build, numpy answers and one warning says so."""

import logging
import sys
from types import SimpleNamespace

import pytest

from megaswitch.data import native as module
from megaswitch.data.native import NATIVE_VERSION, native


@pytest.fixture(autouse=True)
def fresh():
    native.cache_clear()
    yield
    native.cache_clear()


def test_the_extension_is_found():
    assert native() is sys.modules["megaswitch.data._native"] and native().VERSION == NATIVE_VERSION


def test_a_missing_extension_is_said_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "megaswitch.data._native", None)
    with caplog.at_level(logging.WARNING):
        assert native() is None and native() is None
    assert len(caplog.records) == 1 and "pip install -e ." in caplog.text and "missing" in caplog.text


def test_an_extension_of_another_build_is_not_called(monkeypatch, caplog):
    monkeypatch.setattr(module, "import_module", lambda name: SimpleNamespace(VERSION=NATIVE_VERSION + 1))
    with caplog.at_level(logging.WARNING):
        assert native() is None
    assert "build it again" in caplog.text
