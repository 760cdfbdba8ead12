# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Reviewing a run
#
# What a run measured, what the analysis made of it, and then a question that nobody asked before. The environment
# variable `TEACHDIAG_RUN` names the run, which must be analysed; by default it is that of `make demo`.

# %%
import os

import numpy as np
import pandas as pd

import teachdiag

pd.set_option("display.max_colwidth", 140)

run = teachdiag.open_run(os.environ.get("TEACHDIAG_RUN", "../../runs/demo"))
run

# %% [markdown]
# ## What was found

# %%
run.verdict

# %% [markdown]
# The four primary claims: each holds only where every placebo falls short of it.

# %%
run.primary[["claim", "estimate", "ci_low", "ci_high", "nearest_placebo", "placebo_estimate", "status"]]

# %%
run.figure("efficiency")

# %% [markdown]
# A figure is Matplotlib's: its Axes can be changed or drawn on, and `savefig` writes it. `run.figures` names them all.

# %%
deciles = run.figure("deciles")
for ax in deciles.axes:
    ax.grid(axis="y", linewidth=0.3)
deciles

# %% [markdown]
# ## The tables
#
# One row of `positions` is one response position of one context, with both models' distributions before any update. The
# unit and meaning of every column are in the file itself.

# %%
dictionary = run.explain("positions")
dictionary

# %% [markdown]
# `gains` holds what each update did at each position of the bank; placebos went through the same measurement.

# %%
run.gains.groupby(["probe_id", "update", "draw"])[["gain", "noise_floor"]].mean()

# %% [markdown]
# `bank()` puts both side by side, for the real step if nothing else is said: where did it teach most?

# %%
bank = run.bank()
bank.nlargest(8, "gain")[
    ["context_id", "position", "token", "student_entropy", "forward_kl", "compatibility_k16", "gain"]
]

# %% [markdown]
# And what did both models expect there? `tokens` shows one context; a token tells more when it is clicked.

# %%
run.tokens(bank["context_id"][bank["gain"].idxmax()])

# %% [markdown]
# ## Asking a question of one's own
#
# *Does a step teach more where the models already agree on the best token, or where they differ?* The question needs
# a column that no table of the analysis has, and three rules that the analysis follows: predictors come from before
# the update, whole prompts are resampled, and the same number is computed for every placebo.

# %%
first_choices = [np.stack(bank[f"{side}_topk_ids"].to_numpy())[:, 0] for side in ("student", "teacher")]
bank["agree"] = first_choices[0] == first_choices[1]
bank.groupby("agree")[["forward_kl", "compatibility_k16", "student_entropy"]].mean().assign(
    share=bank["agree"].value_counts(normalize=True)
)

# %%
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals
from teachdiag.analysis.step.profiles import group_means

asked = run.gains.merge(
    bank[["context_id", "position", "agree"]], on=["context_id", "position"], validate="many_to_one"
)
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
place = pd.cut(bank["position"], [-1, 2, 15, 10**6], labels=["0-2", "3-15", "16 and later"])
bank.groupby(["agree", place], observed=True)["gain"].agg(["mean", "size"])
