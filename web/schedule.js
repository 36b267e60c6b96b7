// The live schedule on the Pyramid Attention Broadcast node: asks the server what the sliders mean and shows its picture.
// No rule of the schedule is known here.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const WAIT = 150; // milliseconds without a change before the server is asked

/** The node at the other end of an output's first link, and of an input's link. */
function target(node, output) {
  const link = node.outputs?.[output]?.links?.[0];
  const found = link === undefined ? undefined : (app.graph.links[link] ?? app.graph.links.get?.(link));
  return found && app.graph.getNodeById(found.target_id);
}

function source(node, name) {
  const slot = node?.inputs?.findIndex((input) => input.name === name);
  return slot === undefined || slot < 0 ? undefined : node.getInputNode?.(slot);
}

function values(node, names) {
  return Object.fromEntries(
    names
      .map((name) => [name, node?.widgets?.find((widget) => widget.name === name)?.value])
      .filter(([, value]) => value !== undefined),
  );
}

/** What the picture depends on: the node's own widgets, and those of the sampler and loader that it is wired to. */
export function settings(node) {
  const sampler = target(node, 0);
  const loader = source(sampler, "model");
  return {
    ...values(node, ["policy", "spatial_range", "temporal_range", "cross_range", "mlp", "window_start", "window_stop"]),
    ...values(sampler, ["steps", "width", "height", "frames"]),
    ...values(loader, ["model"]),
  };
}

function show(element, answer) {
  const shares = Object.entries(answer.reused ?? {}).map(([kind, share]) => `${kind} ${Math.round(100 * share)} %`);
  element.replaceChildren();
  if (answer.error) {
    const words = document.createElement("p");
    words.textContent = answer.error;
    words.setAttribute("role", "alert");
    words.style.color = "var(--error-text, #f87171)";
    element.append(words);
    return;
  }
  const picture = new DOMParser().parseFromString(answer.svg, "image/svg+xml").documentElement;
  picture.setAttribute("width", "100%");
  const words = document.createElement("p");
  words.textContent = `saves ${Math.round(100 * answer.saving)} % of the arithmetic; reused: ${shares.join(", ")}`;
  element.append(document.importNode(picture, true), words);
}

async function refresh(node, element, state) {
  const asked = JSON.stringify(settings(node));
  if (asked === state.asked) return;
  state.asked = asked;
  let answer;
  try {
    const response = await api.fetchApi("/pab/schedule", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: asked,
    });
    answer = await response.json();
  } catch (error) {
    answer = { error: `The schedule could not be read from the server (${error.message}).` };
    state.asked = undefined;
  }
  // A slider that moved on has asked anew; only the last answer counts.
  if (state.asked === asked || answer.error) show(element, answer);
}

app.registerExtension({
  name: "pab.schedule",
  nodeCreated(node) {
    if (node.comfyClass !== "PABBroadcast") return;
    const element = document.createElement("div");
    element.style.cssText = "font-size: 12px; color: var(--input-text, #ddd); overflow: hidden; padding: 2px 6px";
    const widget = node.addDOMWidget("schedule", "pab_schedule", element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => 200,
      getMaxHeight: () => 260,
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
      return removed?.apply(this, args);
    };
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, 380), Math.max(node.size[1], height)]);
    later();
  },
});
