"""A run's folder -> one self-contained HTML file.

    write_report(Path("runs/mine"), Path("runs/mine/report.html"))

`loading` reads the folder, `observations` the rows of its finished steps; each section of the page is a function from
the run to titles, charts (`charts`, inline SVG) and tables (`blocks`); `page` puts them into `template.html`. Every
figure comes from the run's files; what they do not hold is shown as missing, with the reason.
"""

from selfjudge.report.page import write_report

__all__ = ["write_report"]
