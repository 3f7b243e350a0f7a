"""What u2export does, as Python functions; the commands parse their options, call these functions and print.

`import u2export as u2` gives the most used names. The rest lies in the modules of this package: `exporting`, `ready`,
`running`, `measuring`, `profiling`, `fitting`, `gating`, `tables`, `lower_precision`, `tensorrt` and `inspecting`.
Every policy lies here too: which photos are held back, which photos are skipped, where files go. So Python and the
command line give the same files.
"""
