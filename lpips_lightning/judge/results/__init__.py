"""What follows from the answers of a study: report, ranking of methods, export and calibration.

``agreement``, ``observers`` and ``scoring`` compute the numbers that ``report`` and ``report_figures`` show;
``bradley_terry``, ``student``, ``ranking`` and ``metric_ranking`` those of ``ranking_report``.
"""
