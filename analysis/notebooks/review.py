# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---
# ruff: noqa: B018, D100, E402

# %% [markdown]
# # Reviewing a run
#
# Everything a run measured lies in Parquet tables; this notebook reads them with pandas, shows what the analysis made
# of them, and then asks a question that nobody asked before. Open it in Jupyter (with jupytext) or VS Code;
# `TEACHDIAG_RUN` names the run, which must be analysed.

# %%
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

RUN = Path(os.environ.get("TEACHDIAG_RUN", "runs/demo"))
pd.set_option("display.max_colwidth", 140)

# %% [markdown]
# ## The tables
#
# One row of `positions` is one response position of one context, with both models' distributions before any update. The
# unit and meaning of every column are in the file itself.

# %%
positions = pd.read_parquet(RUN / "positions")
fields = pq.read_schema(next((RUN / "positions").rglob("*.parquet")))
dictionary = pd.DataFrame(
    [(f.name, f.metadata[b"unit"].decode(), f.metadata[b"meaning"].decode()) for f in fields],
    columns=["column", "unit", "meaning"],
)
dictionary

# %% [markdown]
# `gains` holds what each update did at each of these positions; placebos went through the same measurement.

# %%
gains = pd.read_parquet(RUN / "gains")
gains.groupby(["probe_id", "update"])[["gain", "noise_floor"]].mean()

# %% [markdown]
# ## What the analysis found
#
# `findings` is the verdict, one claim a row: a claim holds only where every placebo falls short of it.

# %%
findings = pd.read_parquet(RUN / "analysis/findings.parquet")
headline = findings[(findings["outcome"] == "gain") & findings["k"].isin([16, None, np.nan])]
headline[["finding", "status", "sentence"]]

# %% [markdown]
# The figures are functions of the analysis' tables, so a notebook can show them, or draw single panels of its own.

# %%
from teachdiag.figures.plots.coefficients import coefficients_figure
from teachdiag.figures.plots.deciles import deciles_figure
from teachdiag.figures.run_tables import load_tables, steps_of
from teachdiag.figures.style import theme

step = steps_of(load_tables(RUN))[0]
with theme():
    coefficients = coefficients_figure(step)
coefficients

# %%
with theme():
    deciles = deciles_figure(step)
deciles

# %% [markdown]
# ## Asking a question of one's own
#
# *Does a step teach more where the models already agree on the best token, or where they differ?* The question needs
# a column that no table of the analysis has, and three rules that the analysis follows: predictors come from before
# the update, whole prompts are resampled, and the same number is computed for every placebo.

# %%
bank = positions[positions["split"] == "bank"]
first_choices = [np.stack(bank[f"{side}_topk_ids"].to_numpy())[:, 0] for side in ("student", "teacher")]
bank = bank.assign(agree=first_choices[0] == first_choices[1])
bank.groupby("agree")[["forward_kl", "compatibility_k16", "student_entropy"]].mean().assign(
    share=bank["agree"].value_counts(normalize=True)
)

# %%
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals
from teachdiag.analysis.step.profiles import group_means

KEY = ["context_id", "position"]
asked = gains.merge(bank[[*KEY, "agree"]], on=KEY, validate="many_to_one")
rows = []
for (probe_id, update), mine in asked.groupby(["probe_id", "update"]):
    one = mine[mine["draw"] == 0]
    prompts = np.unique(one["prompt_id"], return_inverse=True)[1]
    weights = Resampling(seed=0, draws=1000, n_prompts=prompts.max() + 1).weights("agreement")
    means = group_means(one["gain"].to_numpy(float), one["agree"].to_numpy(int), 2, prompts, weights)
    differ, agree, contrast = intervals(np.column_stack([means, means[:, 0] - means[:, 1]]))
    rows.append(
        {"probe": probe_id, "update": update}
        | {"gain where they differ": str(differ), "where they agree": str(agree), "difference": str(contrast)}
    )
answer = pd.DataFrame(rows)
answer

# %% [markdown]
# A difference that a placebo shows too says something about KL where the models differ, and nothing about teaching:
# read the real step's line against the others. The position may matter as much, as first tokens differ more often:

# %%
place = pd.cut(asked["position"], [-1, 2, 15, 10**6], labels=["0-2", "3-15", "16 and later"])
real = asked["update"] == next(iter(step.updates))
asked[real].groupby(["agree", place[real]], observed=True)["gain"].agg(["mean", "size"])
