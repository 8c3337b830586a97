"""The few pieces that Streamlit has no widget for."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import streamlit as st

# A favicon of our own: those that Streamlit names come from afar.
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" stroke="#0f766e" stroke-width="4"
stroke-linecap="round"><path d="M4 14v4M10 9v14M16 4v24M22 9v14M28 14v4"/></svg>"""
STYLE = Path(__file__).with_suffix(".css")


def html(*parts: str) -> None:
    st.html(f'<div class="vx">{"".join(parts)}</div>')


def title(text: str) -> str:
    return f"<h4>{escape(text)}</h4>"


def steps(cards: Iterable[tuple[str, str, str, str]]) -> str:
    "Cards in a row, or below each other on a narrow screen: name, state (good, ask, bad, off), text, detail."
    drawn = (
        f'<li class="{state}"><h4>{name}</h4><b>{escape(text)}</b><small>{escape(detail)}</small></li>'
        for name, state, text, detail in cards
    )
    return f'<ol class="steps">{"".join(drawn)}</ol>'


def times(known: Iterable[tuple[str, str]]) -> str:
    "A time and what belongs to it, a row each."
    rows = "".join(f"<li><span>{when}</span><span>{escape(what)}</span></li>" for when, what in known)
    return f'<ol class="times">{rows}</ol>'


def words(known: Iterable[tuple[str, float]], sure: float) -> str:
    "Each word over its probability; those below `sure` are set apart."
    drawn = (
        f"<span{' class=low' if probability < sure else ''}>{escape(word.strip())}"
        f"<small>{probability:.2f}</small></span>"
        for word, probability in known
    )
    return f'<div class="words">{"".join(drawn)}</div>'


def bar(name: str, value: float, act: float | None, confirm: float | None, top: bool) -> str:
    "A value between 0 and 1, with the lines from which it acts and asks."
    ticks = "".join(
        f'<u class="{kind}" style="left: calc({at:.0%} - 1px)"></u>'
        for kind, at in (("act", act), ("confirm", confirm))
        if at is not None
    )
    return (
        f'<div class="bar{" top" * top}"><span>{escape(name)}</span>'
        f'<span class="track" role="meter" aria-valuenow="{value:.2f}" aria-valuemin="0" aria-valuemax="1"'
        f' aria-label="{escape(name)}"><i style="width: {value:.1%}"></i>{ticks}</span>'
        f"<span>{value:.2f}</span></div>"
    )


KEY = '<div class="key"><u></u>acts above<u class="confirm"></u>asks from</div>'


def marked(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    "`text` with its spans [start, end) marked and named."
    drawn, at = "", 0
    for start, end, name in sorted(spans):
        drawn += f"{escape(text[at:start])}<mark>{escape(text[start:end])}<em>{escape(name)}</em></mark>"
        at = end
    return f'<div class="text">{drawn}{escape(text[at:])}</div>'


def said(text: str, *details: str) -> str:
    return f"<b>{escape(text)}</b>" + "".join(f"<p>{escape(detail)}</p>" for detail in details)


def problem(message: str, hint: str, icon: str = ":material/error:") -> None:
    "What went wrong, and what to do about it."
    st.error(f"{message}  \n{hint}" if hint else message, icon=icon)
