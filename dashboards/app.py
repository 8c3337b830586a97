"""The page people see: walk through the shop, and see the list change and say why.

    streamlit run dashboards/app.py                     # starts the service it needs, embedded
    streamlit run dashboards/app.py -- --recs-url URL   # uses one that runs

It holds no logic of its own: what it shows came over HTTP from a service.
"""

import argparse
import sys
from pathlib import Path

import streamlit as st

sys.path.insert(0, str(Path(__file__).parent))  # streamlit runs a file, not a package

import shop_page

STYLE = """<style>
.block-container {padding-top: 2.5rem; max-width: 1200px;}
h1 {font-size: 1.9rem !important;}
</style>"""


def arguments() -> argparse.Namespace:
    "What stands after -- on streamlit's command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recs-url", default="", help="a running recommendation service")
    return parser.parse_known_args()[0]


st.set_page_config(page_title="voxrec", page_icon=":material/storefront:", layout="wide")
st.html(STYLE)
shop_page.show(arguments().recs_url)
