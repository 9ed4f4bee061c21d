"""Warm children: forks of one process that has paid for the imports of torch and diffusers.

A child of the GPU services imports for seconds before it says Ready, on a slow core for ten. Tests
that are not about this start the modules ``trainer`` and ``inferencer`` of this package in the
place of the product's: small programs that let the server fork, lend the fork their files, pass on
signals and end as it ends. What runs in the fork is the product's own ``main``.

The processes of pytest-xdist are forks of that server, too: the tests import the same.

Services that the tests start may be warm as well: forks of another server, which has imported what
they need and no more. A cold gateway imports for a second and more.

All processes of the tests share both servers; each finds those of its nearest ancestor that has
them.
"""
