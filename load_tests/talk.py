"""What people say who want nothing, and a voice that says it, kept once spoken."""

import hashlib
from pathlib import Path

import numpy as np

from voxrec.voice.audio import RATE, Samples, resample
from voxrec.voice.speak import Voice

SMALL_TALK = """we had pasta for lunch yesterday; the match last night was terrible; my daughter starts school
in the autumn; it has been raining since Tuesday; I could really use a cup of coffee; did you watch that film
I told you about; she said she would be late again; the bus was full this morning; I am so tired today; my
knee hurts when it gets cold; we are going to the lake on Sunday; that song has been in my head all day; he
never answers his messages; I forgot my umbrella at home; the soup was too salty for me; they are building a
new bridge near my house; my brother bought a used car last week; I hope the weather holds until Saturday; you
should see our garden now; somebody ate my sandwich again; the radio said it might snow; I like your new
jacket; what a strange thing to say; we used to live by the sea; the dog kept me awake all night; there was a
long queue at the bakery; happy birthday to you; see you tomorrow then; thanks a lot, that was kind of you;
good morning everybody; I think the coffee machine upstairs makes better coffee; my car would not start so I
took the train; is it Friday already; that was funny; I do not know what to cook tonight; the concert is sold
out; my phone battery never lasts the day; his wife is from Portugal; I read the whole book in one evening; we
should stop worrying about that; the children were sick last week; let me tell you a story; I will have the
soup and a small salad; the team lost again on Sunday; nobody told me about the party; ten of clubs and the
queen of hearts; one two three four five; it was a quarter past nine; oh well, never mind him; the doctor said
it is nothing serious; hello, can you hear me"""
FLOOR_TALK = """we moved forty pallets before lunch; maintenance was here this morning; Maria is on holiday
until Monday; the new forklift is really quiet; security has new uniforms; I worked at dock seven for three
years; first aid training was fun last year; they painted the emergency stop buttons red; the line runs faster
than it used to; I met Tom at the canteen; the cleaners do a good job in the office; dock four is always cold
in winter; Priya told me a joke about the printer; packing was my first job here; John got a medal for twenty
years; the loading bay looks so much better now; quality control found nothing wrong; my locker is next to the
charging station; I like working in aisle twelve; the conveyor is forty metres long; last year we had two
forklifts less; security found my keys in the car park; the technicians were very friendly; they stopped the
football match because of rain; I always eat my lunch behind receiving; the new scanner is lighter than the
old one; Maria called me yesterday evening; we were at gate two when the sun came up; my cousin works for
maintenance at the airport; shipping was closed on the bank holiday; somebody drew a face on the pallet; the
medics on television always run; the shift was quiet and nothing happened; the emergency exit door is green;
Tom and Johnny are brothers I think; the mezzanine used to be a storage room; cold storage is where I would go
in summer; dock seven and dock eight; conveyor, pallet, forklift; there were twelve of us in the office; the
dispatcher has a nice voice; I T people drink too much coffee; the guards changed at midnight; line three was
built in Germany; a safety film was shown at the meeting; the stop at the corner is where my bus leaves; I
called my mother at noon; we sent a card to the front desk; they need a bigger car park; zone B is behind zone
A"""


def sentences(lines: str) -> list[str]:
    "The sentences of a list with semicolons between them."
    return [" ".join(s.split()) for s in lines.split(";")]


def spoken(voice: Voice, text: str, home: Path) -> Samples:
    "The text by that voice at 16 kHz: from the folder `home`/bench_clips if it was spoken before."
    name = hashlib.sha256(f"{type(voice).__name__} {voice.name} {text}".encode()).hexdigest()[:16]
    path = home / "bench_clips" / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = voice.speak(text)
        np.save(path, resample(samples, rate, RATE))
    return np.load(path)
