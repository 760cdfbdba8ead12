"""Why a pair, as it was captured, may not be able to answer: said at capture, and again above every verdict."""

from collections.abc import Mapping
from typing import Any

from teachdiag.foreign import RECODED
from teachdiag.progress import Reporter

# Two copies of the same weights give 0 where they share a layout, and no more than rounding elsewhere.
_SAME_KL = 1e-6  # nats
# Beyond these the student gives the teacher's words less than e^-4, 2%, on average, or most of what the teacher would
# say is outside of its 16 likeliest tokens. SmolLM2-135M without its layer 20, whose text is still sensible, has 0.3
# nats and C = 0.8; without a layer that it cannot do without, 10.6 nats and C = 0.09: these lie far from both.
_WRECKED_KL, _WRECKED_C = 4.0, 0.35
_MOSTLY_CUT = 0.6  # of responses: from here on the bank is one of beginnings


def doubts(results: Mapping[str, Any], without_template: bool) -> list[str]:
    """Sentences on what keeps a bank's numbers from meaning what they seem to mean; none where it is sound.

    Args:
        results: of the capture: bank means of forward KL and C (absent behind some engines), share of responses cut.
        without_template: whether prompts were rendered here, by a tokenizer that has no chat template.
    """
    kl, c = results.get("bank_mean_forward_kl"), results.get("bank_mean_compatibility_k16")
    cut, sentences = results["share_cut_at_max_new_tokens"], []
    if kl is not None and kl < _SAME_KL:
        sentences.append(
            f"the teacher says what the student says (mean forward KL {kl:.2g} nats): their weights and prompts are "
            "the same, or as good as the same, so there is nothing to learn"
        )
    elif (kl is not None and kl > _WRECKED_KL) or (c is not None and c < _WRECKED_C):
        known = {"mean forward KL in nats": kl, "mean C": c}
        means = ", ".join(f"{name} {value:.2g}" for name, value in known.items() if value is not None)
        sentences.append(
            f"student and teacher hardly agree on anything ({means}): is the student broken, by a layer that "
            "it needs, by wrong weights, or by a prompt that it was not made for?"
        )
    if without_template:
        sentences.append(_plain_text("the student", "both models"))
    if cut is not None and cut >= _MOSTLY_CUT:
        sentences.append(
            f"{cut:.0%} of the responses were cut at the length limit: the bank is of their beginnings, and how they "
            "end was not measured; raise the limit to measure it"
        )
    return sentences


def say_without_template(name: str, tokenizer: Any, reporter: Reporter) -> None:  # noqa: ANN401
    """Say of a model that its tokenizer has no chat template, where that is so."""
    if not tokenizer.chat_template:
        reporter.say(f"Beware: {_plain_text(name, 'it')}")


def _plain_text(who: str, readers: str) -> str:
    return (
        f"{who} has no chat template, so that prompts are plain text to {readers}: a model that was trained on "
        "conversations answers another question than it would in one"
    )


def of_server(teacher: Mapping[str, Any]) -> list[str]:
    """Sentences on what cannot be known of a teacher behind an address; none of one that was loaded.

    Args:
        teacher: what capture recorded of it.
    """
    if "server" not in teacher:
        return []
    sentence = (
        f"the teacher is {teacher['name']!r} as {teacher['server']} served it: no weights behind an address can be "
        "pinned, how it ends a text was not compared with the student, and its probabilities count what its LM head "
        "gives to padding"
    )
    bounded = (
        "the server gave its top ids alone, so that C and D are known within bounds (their columns _low and _high)"
    )
    return [sentence, bounded] if teacher["gives"] == "top" else [sentence]


def of_import(imported: Mapping[str, Any]) -> list[str]:
    """Sentences on what an import left out or could not know.

    Args:
        imported: what `teachdiag import` recorded, with counts by name in `skipped` and `responses`; empty for banks
            that were not imported.
    """
    skipped, responses, sentences = imported.get("skipped", {}), imported.get("responses", {}), []
    if skipped:
        reasons = "; ".join(f"{count} {reason}" for reason, count in skipped.items())
        sentences.append(
            f"{sum(skipped.values())} rows of the imported files were left out ({reasons}): the bank is of the others"
        )
    if recoded := responses.get(RECODED, 0):
        sentences.append(
            f"{recoded} of {sum(responses.values())} imported responses are their text encoded anew: where the student "
            "sampled other tokens with the same text, which no text tells, the bank has its tokenizer's instead"
        )
    return sentences
