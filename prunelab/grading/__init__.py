"""Grade a class of notebooks: the marks are decided where students' code cannot reach.

The data flow, one room after the other::

    lab.understand     a master notebook and its checks/<lab>.py ──► what is asked, and for how many points
    release.release    masters ──► students' notebooks, without solutions, and a manifest
    collect.collect    a folder or a platform's zip ──► one submission for each student and lab
    rebuild.rebuild    a submission ──► the sources of its answers alone, put into the master
    sandbox.Sandbox    bubblewrap and limits around worker.py, the only room that a student's code is ever in
    worker             inside: defines and calls a student's function; has nbval run the notebook
    check              outside: draws inputs, asks the reference, compares what came back as JSON and raw
    numbers run.grade          all of it for a class, results in SQLite ──► report.write: CSV, HTML, JSON,
    JUnit XML
"""

from prunelab.grading.check import exercise

__all__ = ["exercise"]
