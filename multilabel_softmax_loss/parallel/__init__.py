"""Several processes that train one net: a hub per rank, which speaks MPI, and the rank's other end of it, beside Caffe.

Each rank is two processes, as every command is that drives Caffe. The parent, which the launcher of MPI started, is the
hub: it alone speaks MPI, so that it can tell the other ranks of what its child came to, whatever kills that. The child
asks its hub over a pipe; what is large lies in memory that both see.
"""
