"""The config of a synthesis: what makes no sense in it is told by its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.errors import InputError
from embedkit_trainer.synthesis.settings_file import load_synthesis
from tests.trainer.synthesis.scripted import write_config


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://",
        "http://[::1",
        "http://[v1.x]/v1",
        "http://\u2100.example/v1",
        "http://host:99999/v1",
        "http://host:port/v1",
        "http://my host/v1",
        "http://host/v1\\n",
    ],
)
def test_an_address_that_is_none(address: str, tmp_path: Path) -> None:
    """Whatever it is that a client could not open, it is refused before there is a client."""
    config = write_config(tmp_path, address)
    with pytest.raises(InputError, match=r"models\.tiny\.base_url is no web address: write it as https://"):
        load_synthesis(config)


@pytest.mark.parametrize(
    "address", ["http://[::1]:8000/v1", "HTTPS://Host/v1?api-version=1", "http://m\u00fcnchen.example/v1"]
)
def test_an_address_that_is_one(address: str, tmp_path: Path) -> None:
    """IPv6, capitals, a query string and letters beyond ASCII are no mistakes."""
    assert load_synthesis(write_config(tmp_path, address)).models[0].base_url == address


def test_a_password_in_an_address(tmp_path: Path) -> None:
    """It is refused, and not shown."""
    config = write_config(tmp_path, "http://me:secret@host/v1")
    with pytest.raises(InputError, match="base_url holds a user or a password: take them out") as told:
        load_synthesis(config)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("name", ["", "MY KEY", "sk-0123456789abcdef"])
def test_a_key_where_its_variable_should_be(name: str, tmp_path: Path) -> None:
    """What is no name of a variable is refused, and not shown: it may be the key itself."""
    config = write_config(tmp_path, "http://host/v1", model=f'api_key_env = "{name}"')
    with pytest.raises(InputError, match=r"models\.tiny\.api_key_env is no name of a variable") as told:
        load_synthesis(config)
    assert "0123" not in str(told.value)


@pytest.mark.parametrize("key", ["n", "max_tokens", "max_completion_tokens", "stream", "messages", "model"])
def test_a_body_that_breaks_ceilings(key: str, tmp_path: Path) -> None:
    """What would make an answer longer than was booked, or several of one, does not join a request."""
    config = write_config(tmp_path, "http://host/v1", model=f"extra_body = {{ {key} = 3 }}")
    with pytest.raises(InputError, match=rf"extra_body\.{key} would undo what the ceilings reckon with"):
        load_synthesis(config)


@pytest.mark.parametrize("value", ["nan", "[inf]", "1979-05-27"])
def test_a_body_that_json_has_not(value: str, tmp_path: Path) -> None:
    """TOML knows more values than JSON."""
    config = write_config(tmp_path, "http://host/v1", model=f"extra_body = {{ x = {{ y = {value} }} }}")
    with pytest.raises(InputError, match=r"models\.tiny\.extra_body holds what JSON has not"):
        load_synthesis(config)


@pytest.mark.parametrize("key", ["pools", "rows"])
def test_a_path_with_a_null_character(key: str, tmp_path: Path) -> None:
    """No path holds one, so that it is refused where it stands."""
    with pytest.raises(InputError, match=rf"{key} holds the character U\+0000"):
        load_synthesis(write_config(tmp_path, "http://host/v1", f'{key} = "a\\u0000b"'))


def test_a_digit_that_is_no_number(tmp_path: Path) -> None:
    """A model is entered by number or name; what only looks like a number names none."""
    with pytest.raises(InputError, match="names no item '²': known are tiny"):
        load_synthesis(write_config(tmp_path, "http://host/v1"), ["models.².share=1"])
