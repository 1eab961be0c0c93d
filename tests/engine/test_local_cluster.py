import pytest

from clusterray.engine.local_cluster import local_cluster
from clusterray.errors import RunError


def test_jobs_run_on_a_cluster_of_their_own_and_failure_is_told(tmp_path, capfd):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "hello.py").write_text(
        "import sys, ray\n"
        "ray.init()\n"
        "print('cpus', ray.cluster_resources()['CPU'], sys.argv[1:])\n"
        "sys.exit(4 if 'fail' in sys.argv else 0)\n"
    )
    with local_cluster(num_cpus=1) as cluster:
        said = ["--set", "a.b='c $HOME'", "a.c=`é`"]
        cluster.submit("steps.hello", said, working_dir=str(tmp_path))
        assert f"cpus 1.0 {said}" in capfd.readouterr().out
        with pytest.raises(RunError, match=r"job 'steps.hello' ended as FAILED"):
            cluster.submit("steps.hello", ["fail"], working_dir=str(tmp_path))
