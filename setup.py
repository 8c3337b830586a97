"""Reads settings.ini, the one home of names, versions and dependencies, for setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(key: str) -> list[str]:
    return settings[key].split()


setup(
    version=settings["version"],
    description=settings["description"],
    keywords=settings["keywords"].split(),
    install_requires=lines("requirements"),
    extras_require={
        key.removesuffix("_requirements"): lines(key) for key in settings if key.endswith("_requirements")
    },
)
