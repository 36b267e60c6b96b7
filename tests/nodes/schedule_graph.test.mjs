// Unit tests of web/schedule_graph.js on graphs of plain objects, as the page's look.

import assert from "node:assert/strict";
import test from "node:test";
import { bytes, measuredLine, percent, predictedLines, runKey, settings, source, target } from "../../web/schedule_graph.js";

const widgets = (values) => Object.entries(values).map(([name, value]) => ({ name, value }));

/** Nodes by id and links [source, slot, target, input]; `kind` "map" as the page of today has them, "list" as before. */
function graphOf(kind, nodes, links) {
  const listed = links.map(([from, slot, to, input], id) => ({ id, origin_id: from, origin_slot: slot, target_id: to, input }));
  const graph = {
    links: kind === "map" ? new Map(listed.map((link) => [link.id, link])) : listed,
    getNodeById: (id) => nodes[id],
  };
  for (const [id, node] of Object.entries(nodes)) {
    node.id = id;
    node.graph = graph;
    node.inputs ??= [];
    for (const link of listed.filter((one) => one.target_id === id)) node.inputs.push({ name: link.input, link: link.id });
    node.outputs = [{ links: listed.filter((one) => one.origin_id === id).map((one) => one.id) }];
    node.getInputNode = (slot) => nodes[listed[node.inputs[slot].link]?.origin_id] ?? null;
  }
  return nodes;
}

function whole(kind, policy = {}) {
  return graphOf(
    kind,
    {
      fetch: { widgets: widgets({ model: "latte" }) },
      load: { widgets: widgets({ model: "demo", precision: "auto" }) },
      policy: { widgets: widgets({ policy: "pab246", cross_range: 3, kept: "fp8", ...policy }) },
      sample: { widgets: widgets({ steps: 20, width: 64, height: 32, frames: 17, seed: 5 }) },
    },
    [
      ["policy", 0, "sample", "policy"],
      ["load", 0, "sample", "model"],
    ],
  );
}

for (const kind of ["map", "list"]) {
  test(`settings are those of the node, its sampler and its loader (${kind})`, () => {
    const nodes = whole(kind);
    assert.equal(target(nodes.policy, 0), nodes.sample);
    assert.equal(source(nodes.sample, "policy"), nodes.policy);
    assert.deepEqual(settings(nodes.policy), {
      policy: "pab246", cross_range: 3, kept: "fp8", steps: 20, width: 64, height: 32, frames: 17, model: "demo",
    });
  });
}

test("a connected checkpoint goes before the loader's own model", () => {
  const nodes = graphOf(
    "map",
    {
      fetch: { widgets: widgets({ model: "latte" }) },
      load: { widgets: widgets({ model: "demo" }) },
      policy: { widgets: widgets({ policy: "pab236" }) },
      sample: { widgets: [] },
    },
    [
      ["policy", 0, "sample", "policy"],
      ["load", 0, "sample", "model"],
      ["fetch", 0, "load", "checkpoint"],
    ],
  );
  assert.deepEqual(settings(nodes.policy), { policy: "pab236", model: "latte" });
});

test("a policy by its full name goes before the choice", () => {
  assert.equal(settings(whole("map", { name: " steps15 " }).policy).policy, "steps15");
  const { policy, ...rest } = settings(whole("map", { name: "" }).policy);
  assert.equal(policy, "pab246");
  assert.equal("name" in rest, false);
});

test("a node that is wired to nothing has its own settings", () => {
  const nodes = graphOf("map", { policy: { widgets: widgets({ policy: "off" }) } }, []);
  assert.deepEqual(settings(nodes.policy), { policy: "off" });
  assert.equal(source(undefined, "model"), undefined);
});

test("only runs of one size and model are compared", () => {
  const asked = settings(whole("map").policy);
  assert.equal(runKey(asked), runKey({ ...asked, policy: "off", cross_range: 9 }));
  assert.notEqual(runKey(asked), runKey({ ...asked, steps: 21 }));
  assert.notEqual(runKey(asked), runKey({ ...asked, model: "latte" }));
  assert.notEqual(runKey(asked), runKey({ ...asked, speed: "exact" }));
  assert.notEqual(runKey(asked), runKey({ ...asked, devices: "0,1" }));
});

test("a pool of workers is part of what is compared", () => {
  const nodes = {
    policy: { widgets: widgets({ policy: "pab246" }), outputs: [{ links: [0] }] },
    pool: { widgets: widgets({ devices: "0,1", method: "dsp", idle: 10 }), outputs: [{ links: [1] }] },
    sampler: { widgets: widgets({ steps: 20 }), inputs: [{ name: "policy" }, { name: "workers" }] },
  };
  const graph = { links: new Map([[0, { target_id: "sampler" }]]), getNodeById: (id) => nodes[id] };
  nodes.policy.graph = graph;
  nodes.sampler.getInputNode = (slot) => [nodes.policy, nodes.pool][slot];
  assert.deepEqual(settings(nodes.policy), { policy: "pab246", steps: 20, devices: "0,1", method: "dsp" });
});

test("numbers for people", () => {
  assert.equal(percent(0.2345), "23 %");
  assert.deepEqual([0, 999, 1000, 32440320, 26815795200].map(bytes), ["0 B", "999 B", "1.0 kB", "32.4 MB", "26.8 GB"]);
});

test("what is predicted and what was measured, in words", () => {
  const answer = { saving: 0.25, reused: { spatial: 0.3, cross: 0.5 }, kept_bytes: 32440320 };
  assert.deepEqual(predictedLines(answer), ["saves 25 % of the arithmetic; keeps 32.4 MB", "reused: spatial 30 %, cross 50 %"]);
  assert.equal(predictedLines(answer, 40)[0], "saves 25 % of the arithmetic, about 10 s of 40 s; keeps 32.4 MB");
  assert.equal(predictedLines({ saving: 0, reused: {}, kept_bytes: null }, 40)[0], "saves 0 % of the arithmetic");
  const measured = { policy: "pab246", seconds: 3.2, kept_bytes: 0 };
  assert.equal(measuredLine(measured), "measured: 3.2 s with pab246");
  assert.equal(measuredLine(measured, 4), "measured: 3.2 s with pab246, 1.25x as fast as off");
  assert.equal(measuredLine({ ...measured, policy: "off" }, 4), "measured: 3.2 s with off");
});
