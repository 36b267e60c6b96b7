// The live schedule on the policy nodes: asks the server what the sliders mean and shows its picture, and after a run
// what the sampler measured. No rule of the schedule is known here.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { measuredLine, POLICY_NODES, predictedLines, runKey, settings, source } from "./schedule_graph.js";

const WAIT = 150; // milliseconds without a change before the server is asked
const offSeconds = new Map(); // size and model of a run -> its time without reuse, as last measured on this page

function picture(svg) {
  const found = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
  found.setAttribute("width", "100%");
  return document.importNode(found, true);
}

function paragraph(text, role) {
  const words = document.createElement("p");
  words.textContent = text;
  words.style.margin = "2px 0";
  if (role) words.setAttribute("role", role);
  return words;
}

function show(element, state) {
  const { answer, measured } = state;
  if (!answer) return;
  if (answer.error) {
    const words = paragraph(answer.error, "alert");
    words.style.color = "var(--error-text, #f87171)";
    element.replaceChildren(words);
    return;
  }
  const off = offSeconds.get(state.key);
  const parts = [picture(answer.svg)];
  if (answer.curves) parts.push(picture(answer.curves));
  parts.push(...predictedLines(answer, off).map((line) => paragraph(line)));
  if (measured) {
    const words = paragraph(measuredLine(measured, offSeconds.get(state.measuredKey)));
    words.className = "pab-measured";
    parts.push(words);
  }
  element.replaceChildren(...parts);
}

async function refresh(node, element, state) {
  const given = settings(node);
  const asked = JSON.stringify(given);
  if (asked === state.asked) return;
  state.asked = asked;
  let answer;
  let failed = false;
  try {
    const response = await api.fetchApi("/pab/schedule", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: asked,
    });
    answer = await response.json();
  } catch (error) {
    answer = { error: `The schedule could not be read from the server (${error.message}).` };
    failed = true;
  }
  // A slider that moved on has asked anew; only the last answer counts.
  if (state.asked !== asked) return;
  if (failed) state.asked = undefined; // asked again at the next look
  state.answer = answer;
  state.key = runKey(given);
  show(element, state);
}

/** Adds the picture to a policy node. */
function addSchedule(node) {
  const element = document.createElement("div");
  element.className = "pab-live-schedule";
  element.style.cssText = "font-size: 12px; color: var(--input-text, #ddd); overflow: hidden auto; padding: 2px 6px";
  const widget = node.addDOMWidget("schedule", "pab_schedule", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 250,
    getMaxHeight: () => 340,
  });
  widget.serializeValue = () => undefined;
  const state = {};
  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => refresh(node, element, state), WAIT);
  };
  for (const own of node.widgets) {
    const callback = own.callback;
    own.callback = function (...args) {
      const result = callback?.apply(this, args);
      later();
      return result;
    };
  }
  const connections = node.onConnectionsChange;
  node.onConnectionsChange = function (...args) {
    const result = connections?.apply(this, args);
    later();
    return result;
  };
  // The sampler's and loader's widgets belong to other nodes: looked at now and then, asked about only when changed.
  const watch = setInterval(later, 1000);
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    clearInterval(watch);
    clearTimeout(timer);
    return removed?.apply(this, args);
  };
  node.pabMeasured = (measured) => {
    state.measured = measured;
    state.measuredKey = runKey(settings(node));
    show(element, state);
  };
  node.pabShow = () => show(element, state);
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, 380), Math.max(node.size[1], height)]);
  later();
}

/** Hands what a sampler measured to the policy node that it is wired to; without reuse it is what others are told by. */
function onMeasured(sampler, measured) {
  const policy = source(sampler, "policy");
  if (measured.policy === "off") {
    const given = policy ? settings(policy) : settings(wiredTo(sampler));
    offSeconds.set(runKey(given), measured.seconds);
  }
  policy?.pabMeasured?.(measured);
  for (const node of sampler.graph?._nodes ?? []) node.pabShow?.();
}

/** Stands for a policy node in front of a sampler that has none, for `settings` to read its size and model. */
function wiredTo(sampler) {
  const graph = { links: { 0: { target_id: sampler.id } }, getNodeById: () => sampler };
  return { graph, outputs: [{ links: [0] }] };
}

app.registerExtension({
  name: "pab.schedule",
  nodeCreated(node) {
    if (POLICY_NODES.includes(node.comfyClass)) addSchedule(node);
    if (node.comfyClass !== "PABSampler") return;
    const executed = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      const result = executed?.call(this, output, ...rest);
      const measured = output?.pab_measured?.[0];
      if (measured) onMeasured(this, measured);
      return result;
    };
  },
});
