"""The tables of quality: pure, from quality.json to Markdown. render.py puts them into the pages."""

from __future__ import annotations

from typing import Any

from findings import Row, markdown, measured_on

REFERENCE, PACKAGE = "MiniLM, fp32", "MiniLM, package (weights of 8 bits, computed in fp32)"
NO_WEIGHTS = (
    "EmbeddingGemma has only seeded random weights here: how well those find anything would mean nothing, so it has no row, and"
    " what is said elsewhere of the speed of its smaller weights stands for its shape alone. With the real ones,"
    " `bench/quality.py --model DIRECTORY --dims 768 512 256 128` measures the same and prints these tables.\n"
    "MiniLM was not trained to be cut (Matryoshka)."
)


def unknown_of(label: str) -> str:
    """Why a case has no quality."""
    return "not measured" if label.startswith("MiniLM") else "not known: random weights"


def with_interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:.3f} ({low:.3f} – {high:.3f})"


def lost(found: dict[str, Any]) -> str:
    """Of the difference to the reference: what it is, or that these queries do not show one."""
    if found["mean"] == 0.0 and found["interval"] == [0.0, 0.0]:
        return "0"
    low, high = found["interval"]
    text = f"{found['mean']:+.3f} ({low:+.3f} – {high:+.3f})".replace("-", "−")
    return f"{text}, within noise" if found["within_noise"] else text


def full(model: dict[str, Any]) -> dict[str, Any]:
    """The row of the whole vector in float32."""
    found: dict[str, Any] = next(row for row in model["rows"] if (row["dim"], row["dtype"]) == (model["dim"], "float32"))
    return found


def in_short(results: dict[str, Any], label: str) -> str:
    """A cell beside a speed: nDCG@10 and its difference to fp32, "" where that label was not measured."""
    model = results["models"].get(label)
    if model is None:
        return ""
    row = full(model)
    mean = f"{row['ndcg@10']['mean']:.3f}"
    return mean if model["compared_with"] == label else f"{mean}, {lost(row['ndcg@10_to_reference'])}"


def of_quality(results: dict[str, Any]) -> list[Row]:
    """For the table of numbers: what the weights are worth whose speed stands there."""
    model = results["models"][PACKAGE]
    row, best = full(model), full(results["models"][REFERENCE])
    what = f"quality of those weights: nDCG@10 over {results['texts']['pairs']:,} docstrings, and of fp32 weights"
    both = f"{row['ndcg@10']['mean']:.3f} and {best['ndcg@10']['mean']:.3f}"
    return [(what, both, f"difference {lost(row['ndcg@10_to_reference'])}", "")]


def quality_table(found: dict[str, Any]) -> str:
    """Precisions, each with its speed and memory; then dimensions and delivered types."""
    results = found["results"]
    return "\n".join(
        [
            of_precisions(results),
            "",
            of_dimensions(results),
            "",
            about(results),
            "",
            NO_WEIGHTS,
            "",
            "![quality over speed, memory and the bytes of a vector](quality.png)",
            "",
            measured_on(found),
            "",
        ]
    )


def of_precisions(results: dict[str, Any]) -> str:
    head = ["model", "recall@1", "recall@10", "nDCG@10", "MRR", "nDCG@10 less fp32's", "short / medium / long"]
    head += ["cosine to fp32", "tokens/s", "one query", "memory of the workers"]
    rows = []
    for label, model in results["models"].items():
        row, cost = full(model), model["cost"]
        lengths = " / ".join(f"{one['ndcg@10']['mean']:.3f}" for one in row["by_length"].values())
        found = [with_interval(row["recall@1"]), f"{row['recall@10']:.3f}", with_interval(row["ndcg@10"])]
        found += [f"{row['mrr']:.3f}", lost(row["ndcg@10_to_reference"]), lengths]
        found += [f"{row['cosine']['mean']:.4f}, at worst {row['cosine']['least']:.4f}"]
        memory = f"{cost['pss_mb']:,} MB ({cost['workers']})"
        rows.append((label, *found, f"{cost['tokens_per_s']:,}", f"{cost['query_p50_ms']:.1f} ms", memory))
    return markdown(head, rows)


def of_dimensions(results: dict[str, Any]) -> str:
    """nDCG@10 by dimension and type, with the bytes of a vector."""
    dtypes = list(dict.fromkeys(row["dtype"] for model in results["models"].values() for row in model["rows"]))
    rows = []
    for label, model in results["models"].items():
        for dim in dict.fromkeys(row["dim"] for row in model["rows"]):
            of = {row["dtype"]: row for row in model["rows"] if row["dim"] == dim}
            rows.append((label, str(dim), *(cell(of[dtype]) for dtype in dtypes)))
    head = ("nDCG@10", "dimensions", *("ubinary, binary" if dtype == "ubinary" else dtype for dtype in dtypes))
    return markdown(head, rows)


def cell(row: dict[str, Any]) -> str:
    same = " ≈" if row["ndcg@10_to_reference"]["within_noise"] else ""
    return f"{row['ndcg@10']['mean']:.3f}{same} ({row['row_bytes']:,} B)"


def about(results: dict[str, Any]) -> str:
    texts = results["texts"]
    return (
        f"{texts['pairs']:,} docstrings of the standard library: the first sentence asks for the rest, among all the others"
        f" ({texts['short']:,} short ones of at most 160 characters, {texts['medium']:,} medium of at most 480,"
        f" {texts['long']:,} long). Intervals hold 95 % of {results['resamples']:,} bootstrap resamples of the queries;"
        " differences are of the same queries. ≈: no difference to fp32 at full dimension that these queries could show."
        " In brackets the bytes of a vector."
        " float16, int8 and uint8 are compared by their product, bits by their Hamming distance; binary has ubinary's bits and"
        " uint8 int8's codes."
    )
