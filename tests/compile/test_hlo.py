"""Costs from HLO text: a sample in the form of the TPU's compiler, written by hand."""

# ruff: noqa: E501
from __future__ import annotations

import pytest

from clipseg_jax.compile import hlo

TEXT = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,8]{1,0})->f32[8,8]{1,0}}

FileNames
1 "/home/me/run.py"
2 "/home/me/clipseg_jax/models/clip/transformer.py"
3 "/env/site-packages/flax/nnx/nn/linear.py"

FunctionNames
1 "<module>"
2 "Attention.<locals>.qkv"
3 "Linear.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=9}
2 {file_name_id=2 function_name_id=2 line=70 end_line=70 column=1 end_column=9}
3 {file_name_id=3 function_name_id=3 line=99 end_line=99 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%body.1 (p.1: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p.1 = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x.1 = f32[8,8]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %c.1 = s32[]{:T(128)} constant(2)
  %next.1 = s32[]{:T(128)} add(%i.1, %c.1)
  %fusion.1 = f32[8,8]{1,0:T(8,128)} fusion(%x.1), kind=kOutput, calls=%fused.1, metadata={op_name="jit(f)/transpose(jvp())/while/body/dot_general" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %t.1 = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) tuple(%next.1, %fusion.1)
}

%condition.1 (p.2: (s32[], f32[8,8])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(7)
  %p.2 = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%i.2, %n.1), direction=LT
}

%fused.1 (p.3: f32[8,8]) -> f32[8,8] {
  %p.3 = f32[8,8]{1,0:T(8,128)} parameter(0)
  ROOT %dot.1 = f32[8,8]{1,0:T(8,128)} convolution(%p.3, %p.3), dim_labels=bf_io->bf
}

%cheap.1 (p.4: f32[8,8]) -> f32[8,8] {
  %p.4 = f32[8,8]{1,0:T(8,128)} parameter(0)
  ROOT %copy.1 = f32[8,8]{1,0:T(8,128)} copy(%p.4), backend_config={"estimated_cycles":"10"}
}

%dear.1 (p.5: f32[8,8]) -> f32[8,8] {
  %p.5 = f32[8,8]{1,0:T(8,128)} parameter(0)
  ROOT %copy.2 = f32[8,8]{1,0:T(8,128)} copy(%p.5), backend_config={"estimated_cycles":"50"}
}

ENTRY %main.1 (x.0: f32[8,8], which.0: s32[]) -> f32[8,8] {
  %x.0 = f32[8,8]{1,0:T(8,128)} parameter(0)
  %which.0 = s32[]{:T(128)} parameter(1)
  %zero.0 = s32[]{:T(128)} constant(0)
  %start.0 = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) tuple(%zero.0, %x.0)
  %while.0 = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) while(%start.0), condition=%condition.1, body=%body.1
  %y.0 = f32[8,8]{1,0:T(8,128)} get-tuple-element(%while.0), index=1
  %z.0 = f32[8,8]{1,0:T(8,128)} conditional(%which.0, %y.0, %y.0), branch_computations={%cheap.1, %dear.1}
  %sum.0 = f32[8,8]{1,0:T(8,128)} all-reduce(%z.0), replica_groups={}, to_apply=%add.1
  ROOT %kernel.0 = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%sum.0), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"4000","transcendentals":"300","bytes_accessed":"20","remote_bytes_transferred":"0"}}}
}
"""


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


def test_a_loop_counts_with_its_trips_and_a_conditional_with_its_dearest_branch(module):
    # The counter goes from 0 to 7 by 2: four times.
    assert sum(times * each.cycles for each, times in module.run()) == 4 * 100 + 50


def test_operations_by_their_place_in_the_code(module):
    costs = dict(hlo.by_operation(module, lambda each: each.cycles))
    assert costs == {
        "models/clip/transformer.py:70 qkv dot_general, gradient": 400,
        "copy": 50,
    }


def test_collectives_and_kernels(module):
    assert hlo.collectives(module) == {"all-reduce": (1, 8 * 8 * 4)}
    (kernel,) = [each.kernel for each, _ in module.run() if each.kernel]
    assert kernel == hlo.Kernel(flops=4000, vectors=300, bytes=20)


def test_bytes(module):
    fusion = [each for each, _ in module.run() if each.name == "fusion.1"]
    assert fusion[0].bytes == 8 * 8 * 4
    loop, copies, reduced = 4 * 2 * 256, 2 * 256, 2 * 256
    assert hlo.memory_bytes(module) == pytest.approx(loop + copies + reduced + 2048 + 256, abs=64)


def test_what_the_compiler_itself_writes_is_read():
    import jax
    import jax.numpy as jnp

    def f(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, length=5)[0]

    text = jax.jit(f).lower(jnp.zeros((64, 64))).compile().as_text()
    module = hlo.parse(text)
    assert module.entry in module.computations
    assert max(times for _, times in module.run()) == 5
