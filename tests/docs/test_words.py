"""The documents say things in the field's words, and README stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md"))),
)

SAY = {
    r"dear": "expensive",
    r"mend(?:s|ed|ing)?": "fix",
    r"absent": "missing",
    r"(?:go|goes|gone|going|went) on(?: with)?": "continue, resume",
    r"stand-ins?": "emulated, fake",
    r"meetings?": "barrier, all-gather",
    r"taken down": "recorded",
    r"turned around": "flipped (rotated by 180°)",
    r"never sees its matrix": "implicit GEMM",
    r"cut into parts": "split; split-K, partial sums",
    r"copy_async|wait_copies|load_matrices": "cp_async, cp_async_wait_group, ldmatrix_x4",
    r"(?:wide|narrow) kernels?": "vectorized, scalar kernel",
    r"nobody asks|a lane wants": "the subject is the code",
    r"(?:told|lies|stands) (?:above|below|in)": "is above, is in",
    r"(?:the house|laws)": "layout, rules",
    r"by heart": "memorize",
    r"in the mean": "on average",
    r"windows × filters × terms": "M, N, K",
    r"(?:a|each|every|next|last|first|other|one) turns?(?! of)": "iteration; k-tile",
    r"slices? of (?:the )?(?:sum|terms|K)": "k-tile",
    r"two copies of (?:the|each|a) tiles?": "double buffering",
    r"mine": "filters_per_group, row_offset",
    r"blocks? of pixels": "square of pixels (a block is a CUDA block)",
    r"(?-i:Exchange|Join|Share)": "all-gather, reduce-scatter, gather, broadcast",
    r"(?<!/)subjects?": "test case, kernel",
    r"(?:a|an|the|this|each|every|no|first|second|other|of|two) findings?": "issue, message",
    r"in sight": "on one page, visible",
    r"rooms": "folders",
    r"(?<!here )(?<!it )is no (?!longer|more|less|\w+er\b)": "isn't a",
    r"wants?|wishes": "the subject is the code",
}
"""Words to avoid, whole and without regard to case, and what to say."""


def sentences(page):
    """The text of a page in one line, so that a phrase across two lines is found as well."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_uses_the_fields_words(page):
    text = sentences(page)
    found = {
        match[0]: say
        for word, say in SAY.items()
        for match in re.finditer(rf"\b(?:{word})\b", text, re.I)
    }
    assert not found, f"{page}: say instead"


@pytest.mark.parametrize(
    "text, found",
    [
        ("An absent file is no error; each goes on\nwith the next, and is mended.", 4),
        ("A lane takes the next turn; Exchange.backward gives two findings on a subject.", 4),
        ("There is no padding. TF32 is no faster, an exchange no longer, `lab/subjects.py`", 0),
    ],
)
def test_the_words_to_avoid_are_found(text, found):
    text = " ".join(text.split())
    assert sum(len(re.findall(rf"\b(?:{word})\b", text, re.I)) for word in SAY) == found


def test_the_pages_are_short_enough_to_be_read():
    assert sum(len(sentences(page).split()) for page in PAGES) < 26_500


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100


def test_readme_shows_a_kernel_as_it_is():
    (kernel,) = re.findall(
        r"^```python\n(@cuda\.jit\n.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M
    )
    assert kernel in (ROOT / "layers" / "lrn.py").read_text("utf-8")


def test_the_glossary_is_alphabetical_and_names_a_file_for_each_term():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- \*\*(.+?)\*\*: .+ (`[\w/]+\.py`|\[.+\]\(.+\))", text, re.M)
    terms = [re.sub(r"[^a-z0-9]", "", term.lower()) for term, _ in entries]
    assert len(terms) == text.count("\n- **") >= 40
    assert terms == sorted(terms)
