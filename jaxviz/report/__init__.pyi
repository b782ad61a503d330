from jaxviz.report.writing import report as report
