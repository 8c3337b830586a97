"Where a load may go: to this machine, unless its owner says otherwise."

import ipaddress
from urllib.parse import urlsplit


def refusal(url: str, remote: bool = False) -> str:
    "Why a load may not go to `url`; empty when it may."
    host = urlsplit(url).hostname or ""
    try:
        near = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = False
    return "" if near or remote else f"{url} is not this machine. Say --remote if it is yours to load."
