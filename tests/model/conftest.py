"""A tiny RAG checkpoint with a T5 beside the models of tests/conftest.py, and models that are opened."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ragstone.model.open import ModelRequest, open_model
from tests.conftest import join_models
from tests.model.families import save_family


@pytest.fixture(scope="session")
def t5_checkpoint_folder(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, t5_folder: Path) -> Path:
    """The T5 joined with the DPR question encoder."""
    folder = tmp_path_factory.mktemp("t5-checkpoint") / "rag"
    return join_models(t5_folder, models_folder / "question_encoder", folder, model_type="rag_token")


@pytest.fixture(params=["rag_sequence", "rag_token"])
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def open_rag(checkpoint_folder: Path, source_folder: Path, model_type: str) -> Callable[..., Any]:
    """Opens the tiny checkpoint over the tiny source as `model_type`; keyword arguments go into the request."""

    def opener(**changes: Any) -> Any:
        request = {"name_or_path": str(checkpoint_folder), "model_type": model_type, "n_docs": 3, **changes}
        return open_model(ModelRequest(**{"passages_path": str(source_folder), **request}))

    return opener


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny generator, which is made when it is first asked for. See families.FAMILIES."""
    parent = tmp_path_factory.mktemp("families")

    @functools.cache
    def folder(name: str) -> Path:
        return save_family(name, parent / re.sub(r"\W+", "-", name))

    return folder
