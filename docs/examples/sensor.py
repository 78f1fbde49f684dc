#!/usr/bin/env python3
"""An invented sensor: prints readings of lamp-7, a line each, as `citylab edge` reads them."""

import argparse
import json
import random
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--readings", type=int, default=0, help="how many; 0 goes on until stopped")
parser.add_argument("--every", type=float, default=1.0, help="seconds between two")
parser.add_argument("--past", action="store_true", help="at once, as if measured until now")
asked = parser.parse_args()
chance = random.Random(7)
begin = time.time() - asked.readings * asked.every
number = 0
while not asked.readings or number < asked.readings:
    number += 1
    reading = {"n": "lamp-7/no2", "v": round(chance.gauss(40, 3), 1), "u": "ug/m3"}
    reading["t"] = round(begin + number * asked.every if asked.past else time.time(), 6)
    print(json.dumps(reading), flush=True)
    if not asked.past:
        time.sleep(asked.every)
