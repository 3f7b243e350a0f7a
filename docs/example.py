# ruff: noqa: D100
# %% [markdown]
# # From weights to a verdict
#
# One round of u2export from Python: export, look, measure, accept, check. `python docs/example.py` runs all cells; an
# editor that knows `# %%` cells runs them one by one. A test runs all cells.

# %%
from pathlib import Path

import numpy as np

import u2export as u2

WEIGHTS, SIZE = "u2netp", 320
OUT = Path("artifacts/example")
PHOTOS = Path("reference/photos")  # four photos that come with the checkout; use your own folder here

# %% [markdown]
# ## Export
#
# Two artifacts of the same weights. Each export compares the masks of the finished file with those of PyTorch and stops
# where they differ by more than the budget allows. int8 needs calibration photos: a folder of photos like those that
# the network will see. `calibration/` is the small set in this repository.

# %%
fp32 = u2.export("onnx", weights=WEIGHTS, size=SIZE, out=OUT)
int8 = u2.export("ort", "int8", weights=WEIGHTS, size=SIZE, out=OUT, calib="calibration/")
for artifact in (fp32, int8):
    print(f"{artifact.name}: {artifact.size / 1e6:.1f} MB, MAE to PyTorch {artifact.fidelity['mae']:.5f}")

# %% [markdown]
# ## Masks
#
# `predict` gives the masks of photos by path, uint8 at the photo's own size. `open_artifact` keeps a runtime open; its
# runner takes network inputs, and its `mask` takes photos.

# %%
masks = u2.predict(int8, PHOTOS)
for path, mask in masks.items():
    print(f"{path.name}: {mask.shape[1]} x {mask.shape[0]}, {np.mean(mask > 127):.0%} of it is the object")

with u2.open_artifact(int8) as runner:
    photo = next(iter(masks))
    d0 = runner(runner.input(photo))  # (1, 3, H, W) float32 in, (1, 1, H, W) float32 out
    assert np.array_equal(runner.mask(photo), masks[photo])
    print(f"{runner.info['runtime']} on {runner.info['device']}, d0 {d0.shape}")

# %% [markdown]
# ## Measure
#
# `bench` runs each artifact in a process of its own and compares its masks with those of the reference. It times all
# rows in turn; the numbers here are few, for a first look.

# %%
report = u2.bench([fp32, int8], PHOTOS, samples=8, seconds=0.2, rounds=2, json=OUT / "report.json")
for row in report.rows:
    if row.fidelity:
        print(f"{row.name}: {row.latency.p50:.1f} ms, IoU {row.fidelity.iou:.4f}")

# %% [markdown]
# ## Guard
#
# Accept these results, then check later results against them. A check of the same results passes.

# %%
baseline, _ = u2.update_baseline(report, OUT / "baseline.json", why="first results")
verdicts = u2.check(report, baseline)
print(verdicts.outcome)
for judgement in verdicts.judgements:
    print(f"{judgement.artifact}: {judgement.verdict}")

# %% [markdown]
# ## Errors
#
# A mistake is a `UserError` with the problem and a hint; a missing package is an `Unavailable`, which is a `UserError`
# too.

# %%
try:
    u2.export("onnx", "int8", weights=WEIGHTS)
except u2.UserError as error:
    print(f"{error.problem}: {error.hint}")
