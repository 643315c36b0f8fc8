"""Many recordings, on this machine or a cluster: each is separated exactly once, whatever dies meanwhile.

`Recording` says what to separate and where its tracks go, `Work` what is done to each; `run_locally` and
`run_on_ray` yield an `Outcome` for each as it comes, and `write_manifest` lists all tracks. The commit of a
result is its report, which takes its name last: there is no other record of what is done. `Claims` keep two
runs from the same recording, `Leases` two machines that share a bucket only; `TryBook` gives up a recording
that has failed twice. `Bucket` reads and writes object stores.
"""

from flasepformer.batch.buckets import Bucket, StoreError, is_address
from flasepformer.batch.claims import Claims
from flasepformer.batch.cluster import ClusterError, run_on_ray
from flasepformer.batch.leases import Leases
from flasepformer.batch.local import run_locally
from flasepformer.batch.outcomes import Outcome, Track, write_manifest
from flasepformer.batch.recordings import Recording, estimate_seconds, is_list, longest_first, read_list
from flasepformer.batch.tries import TryBook
from flasepformer.batch.work import STATE_FOLDER, Work

__all__ = [
    "STATE_FOLDER",
    "Bucket",
    "Claims",
    "ClusterError",
    "Leases",
    "Outcome",
    "Recording",
    "StoreError",
    "Track",
    "TryBook",
    "Work",
    "estimate_seconds",
    "is_address",
    "is_list",
    "longest_first",
    "read_list",
    "run_locally",
    "run_on_ray",
    "write_manifest",
]
