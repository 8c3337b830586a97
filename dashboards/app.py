"""The page people see: speak to a watch, and walk through the shop; each says why it does what it does.

    streamlit run dashboards/app.py                     # starts the services it needs, embedded
    streamlit run dashboards/app.py -- --recs-url URL   # uses one that runs

It holds no logic of its own: what it shows came over MQTT, gRPC or HTTP from a service.
"""

import argparse
import sys
from pathlib import Path

import streamlit as st

sys.path.insert(0, str(Path(__file__).parent))  # streamlit runs a file, not a package

import pieces


def arguments() -> argparse.Namespace:
    "What stands after -- on streamlit's command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recs-url", default="", help="a running recommendation service")
    parser.add_argument("--mqtt-url", default="", help="a running broker; the page brings its own bridge")
    parser.add_argument("--speech-url", default="", help="host:port of a running speech service")
    return parser.parse_known_args()[0]


def speak() -> None:
    import speak_page  # a page is imported when somebody wants to see it

    speak_page.show(arguments().mqtt_url, arguments().speech_url)


def shop() -> None:
    import shop_page

    shop_page.show(arguments().recs_url)


st.set_page_config(page_title="voxrec", page_icon=pieces.ICON, layout="wide")
st.html(pieces.STYLE)
pages = [
    st.Page(speak, title="Speak", icon=":material/graphic_eq:", default=True),
    st.Page(shop, title="Shop", icon=":material/storefront:", url_path="shop"),
]
st.navigation(pages, position="top").run()
