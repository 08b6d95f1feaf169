"""A run in this process: stopped and gone on with, complete, diverged."""

import dataclasses
import json
import time
import numpy as np
import pytest

import para_jax as para
from train import fit, folder
from train.command import settings as plain


def config(run):
    return {"run": plain("lora", run)}


def test_a_run(settings, tmp_path):
    for i in range(2):
        t = time.time()
        rows = fit.fit(settings, tmp_path / f"run{i}", config(settings), every=20)
        print(rows, time.time() - t)
