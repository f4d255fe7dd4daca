"""Reports on finished and running runs, made from their folders alone.

    write_run_report(folder)             report.html of one run, at the end of its training
    write_report(folders, destination)   the same page over any number of runs

What is where: ``runs`` and ``archive`` read what is kept, ``grouping`` finds what distinguishes the runs,
``summary`` says what one run gave, ``statistics`` has the aggregates and their intervals, ``comparison``
decides what is compared, ``results`` makes the tables, ``curves`` and the modules of figures draw, ``build``
puts the sections together and ``page`` writes the HTML.
"""

from gipo_vla.reporting.build import Report, write_report, write_run_report

__all__ = ["Report", "write_report", "write_run_report"]
