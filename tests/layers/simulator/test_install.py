"""Installing the simulator, the fallback to Numba's own, and pdb inside a kernel."""

import sys
import textwrap
from pathlib import Path

import pytest
from numba import cuda
from simulated import IN_FORCE, run_script

from layers import simulator

HERE = Path(__file__).name


@cuda.jit
def does_nothing():
    pass


def test_installing_again_changes_nothing():
    before = type(does_nothing).__call__
    assert simulator.install() == IN_FORCE
    assert type(does_nothing).__call__ is before
    assert "greenlets" in IN_FORCE


@pytest.mark.parametrize(
    "spoil, says",
    [
        ("sys.modules['greenlet'] = None", "pip install greenlet"),
        ("metadata.version = lambda name: '0.31.0'", "numba-cuda==0.30.*"),
    ],
)
def test_numbas_own_simulator_is_the_fallback(tmp_path, spoil, says):
    script = tmp_path / "fallback.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys
            from importlib import metadata
            {spoil}
            import numpy as np
            from numba import cuda
            from layers import simulator

            @cuda.jit
            def double(x):
                x[cuda.grid(1)] *= 2

            said = simulator.install()
            x = np.ones(4)
            double[2, 2](x)
            print(simulator.installed, x.tolist(), said)
        """)
    )
    output = run_script(script)
    assert output.startswith("False [2.0, 2.0, 2.0, 2.0] Numba's own")
    assert says in output


def test_pdb_steps_over_a_barrier_and_into_a_device_function(tmp_path):
    script = tmp_path / "debugged.py"
    script.write_text(
        textwrap.dedent("""
            import numpy as np
            from numba import cuda, float32
            from layers import simulator

            simulator.install()

            @cuda.jit(device=True)
            def twice(v):
                return v + v

            @cuda.jit
            def reverse(x):
                shared = cuda.shared.array(4, float32)
                i = cuda.threadIdx.x
                if i == 1:
                    breakpoint()
                shared[i] = x[i]
                cuda.syncthreads()
                y = shared[3 - i]
                x[i] = twice(y)

            x = np.arange(4, dtype=np.float32)
            reverse[1, 4](x)
            print("result", x.tolist())
        """)
    )
    # From Python 3.13 on `breakpoint()` stops at its own line, before that at the next.
    own_line = sys.version_info >= (3, 13)
    typed = ["n", "n", "p shared", "n", "p float(y), cuda.threadIdx", "s", "s", "p v", "c"]
    typed = ["w", *["n"] * own_line, *typed]
    output = run_script(script, typed="\n".join(typed) + "\n")
    where, *shown = output.split("(Pdb) ")[1:]
    barrier, after, shared, following, thread, call, inside, value, end = shown[own_line:]
    assert where.count("scheduler.py") == 1 and "debugged.py" in where.splitlines()[2]
    assert "-> cuda.syncthreads()" in barrier
    assert "-> y = shared[3 - i]" in after
    assert "array([0., 1., 2., 3.], dtype=float32)" in shared  # all four have written
    assert "-> x[i] = twice(y)" in following
    assert thread.startswith("(2.0, Dim3(x=1, y=0, z=0))")
    assert "--Call--" in call and "twice()" in call
    assert "-> return v + v" in inside
    assert "2.0" in value
    assert end.startswith("result [6.0, 4.0, 2.0, 0.0]")
