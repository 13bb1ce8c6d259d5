"""The live demo: broker, worker, beat, traffic and web server on one SQLite file.

`demo.py` says what is done and printed, `processes.py` starts and watches processes, `stopper.py`
ends them.
"""
