// AttentionExplorer: hover or focus a patch or a word, see what it attends to in picture and text.
//
// spec: grid, words, depth, heads, models (names), methods, pictures (data URL), palette,
// shares[model][layer][head][kind], kinds, regions[{name, cover[patch]}].
// An answer is, per model, the weights of rows x S as bytes of their row's maximum, then the
// maxima as float32: rows = heads x S for attention, S for rollout, 1 for relevance of one token.

function render({ model, el }) {
  const spec = model.get("spec"), { grid, words, depth, heads, models, palette } = spec;
  const patches = grid * grid, first = 1 + patches, tokens = first + words.length;
  const side = grid * Math.max(8, Math.round(256 / grid));
  let view = { ...model.get("view") }, hovered = null, kind = 0;
  const store = new Map(), absent = new Map();
  const root = frame(el, "Attention explorer");
  const line = liveLine(), note = node("p");
  line.style.minHeight = `${3 * models.length}em`; // else the picture jumps under the pointer

  // ---- weights

  function key() {
    if (view.method === "attention") return `attention|${view.layer}`;
    if (view.method === "rollout") return `rollout|${view.layer}`;
    return `relevance|${query()}`;
  }
  const need = () => (store.has(key()) || absent.has(key()) ? null : key());
  const ask = asker(model, need, (got, data) => {
    if (got.error) absent.set(got.key, got.error);
    else if (got.key) keep(got.key, data);
    draw();
    ask();
  });

  function keep(name, data) {
    const rows = { attention: heads * tokens, rollout: tokens, relevance: 1 }[name.split("|")[0]];
    const each = rows * tokens + 4 * rows;
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const parts = models.map((_, index) => {
      const part = bytes.slice(index * each, (index + 1) * each);
      return {
        values: part.subarray(0, rows * tokens),
        most: new Float32Array(part.slice(rows * tokens).buffer),
      };
    });
    store.set(name, parts);
    if (store.size > 200) store.delete(store.keys().next().value);
  }

  // Weights of one token's row; null while the kernel has not answered.
  function row(index) {
    const parts = store.get(key());
    if (!parts) return null;
    const { values, most } = parts[index], out = new Float32Array(tokens);
    const one = view.method !== "attention";
    const from = one ? [0] : view.head < 0 ? [...Array(heads).keys()] : [view.head];
    for (const head of from) {
      const at = view.method === "relevance" ? 0 : head * tokens + query();
      const scale = most[at] / 255 / from.length;
      for (let t = 0; t < tokens; t++) out[t] += values[at * tokens + t] * scale;
    }
    return out;
  }

  const query = () => hovered ?? view.query;

  function name(token) {
    if (token === 0) return "[CLS]";
    return token < first ? place(token - 1, grid) : `word '${words[token - first]}'`;
  }

  // The smallest set of tokens that holds `share` of the weight; the others are not drawn.
  function kept(weights) {
    const share = view.keep / 100;
    if (share >= 1) return () => true;
    const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]);
    const total = weights.reduce((sum, w) => sum + w, 0), found = new Set();
    let sum = 0;
    for (const token of order) {
      if (sum >= share * total) break;
      found.add(token);
      sum += weights[token];
    }
    return (token) => found.has(token);
  }

  // ---- what is shown

  const panels = models.map((title, index) => {
    const canvas = node("canvas", { tabindex: 0, role: "application", width: side, height: side });
    canvas.setAttribute(
      "aria-label", `${title}: picture, arrow keys move the asking patch, Enter keeps it`);
    canvas.addEventListener("pointermove", (event) => hover(patchAt(canvas, grid, event)));
    canvas.addEventListener("pointerleave", () => hover(null));
    canvas.addEventListener("click", (event) => pin(1 + patchAt(canvas, grid, event)));
    canvas.addEventListener("keydown", (event) => {
      const now = query();
      const next = stepped(now > 0 && now < first ? now - 1 : 0, event.key, grid);
      if (next !== null) pin(1 + next);
      else if (event.key === "Home") pin(0);
      else return;
      event.preventDefault();
    });
    const buttons = words.map((word, at) => {
      const bar = node("i"), number = node("small");
      const button = node("button", { class: "word", tabindex: at ? -1 : 0 }, word, bar, number);
      button.addEventListener("pointerenter", () => hover(patches + at));
      button.addEventListener("pointerleave", () => hover(null));
      button.addEventListener("focus", () => pin(first + at));
      button.addEventListener("click", () => pin(first + at));
      button.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
        if (!move) return;
        event.preventDefault();
        buttons[(at + move + words.length) % words.length].focus();
      });
      return button;
    });
    const text = node("div", { class: "words", role: "group", "aria-label": `${title}: words` });
    text.append(...buttons);
    const cells = [], table = node("table", { "aria-label": `${title}: layers and heads` });
    for (let layer = depth - 1; layer >= 0; layer--) {
      const made = node("tr", {}, node("th", { scope: "row" }, `layer ${layer + 1}`));
      for (let head = 0; head < heads; head++) {
        const cell = node("button", { tabindex: -1 });
        cell.addEventListener("click", () =>
          change({ method: "attention", layer: layer + 1, head }));
        cell.addEventListener("keydown", (event) => {
          const moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1],
            ArrowRight: [0, 1] };
          const move = moves[event.key];
          const next = move && cells.find((other) =>
            other.layer === layer + move[0] && other.head === head + move[1]);
          if (!next) return;
          event.preventDefault();
          next.cell.focus();
        });
        cells.push({ cell, layer, head });
        made.append(node("td", {}, cell));
      }
      table.append(made);
    }
    table.append(node("tr", {}, node("th", {}, "head"),
      ...[...Array(heads).keys()].map((head) => node("th", { scope: "col" }, String(head + 1)))));
    const score = node("p"), heading = node("h4", {}, title);
    const width = models.length > 1 ? "max-width: 480px" : "";
    const box = node("div", { style: width }, ...(models.length > 1 ? [heading] : []),
      node("div", { class: "panels" }, canvas, node("div", {}, text, score, table)));
    const panel = { canvas, buttons, cells, score, box, base: null, title, index };
    pictures(spec.picture, side, (_, grey) => {
      panel.base = grey;
      draw();
    });
    return panel;
  });

  function drawPatches(panel, weights, most, shown) {
    const context = panel.canvas.getContext("2d"), step = side / grid;
    context.globalAlpha = 1;
    context.drawImage(panel.base, 0, 0);
    const order = [...Array(patches).keys()].sort((a, b) => weights[b + 1] - weights[a + 1]);
    for (let patch = 0; patch < patches; patch++) {
      if (!shown(patch + 1)) continue;
      const x = (patch % grid) * step, y = Math.floor(patch / grid) * step;
      context.globalAlpha = 0.55;
      context.fillStyle = `rgb(${colour(palette, weights[patch + 1] / most)})`;
      context.fillRect(x, y, step, step);
    }
    context.globalAlpha = 1;
    context.font = DIGITS;
    context.textAlign = "center";
    for (const patch of order.slice(0, step < 24 ? 1 : 4)) { // the strongest in figures too
      const x = ((patch % grid) + 0.5) * step, y = (Math.floor(patch / grid) + 0.5) * step + 4;
      const figure = (100 * weights[patch + 1]).toFixed(1);
      context.strokeStyle = "#000";
      context.lineWidth = 3;
      context.strokeText(figure, x, y);
      context.fillStyle = "#fff";
      context.fillText(figure, x, y);
    }
    const region = spec.regions[view.region];
    if (region) {
      context.setLineDash([4, 3]);
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      region.cover.forEach((cover, patch) => {
        if (cover < 0.5) return;
        context.strokeRect((patch % grid) * step + 1, Math.floor(patch / grid) * step + 1,
          step - 2, step - 2);
      });
      context.setLineDash([]);
    }
    const asks = query() - 1;
    if (asks >= 0 && asks < patches) {
      context.strokeStyle = OUTLINE;
      context.lineWidth = 4;
      context.strokeRect((asks % grid) * step + 2, Math.floor(asks / grid) * step + 2,
        step - 4, step - 4);
    }
  }

  function drawWords(panel, weights, most, shown) {
    panel.buttons.forEach((button, at) => {
      const weight = weights[first + at], share = Math.min(1, weight / most);
      const bar = button.querySelector("i");
      bar.style.width = shown(first + at) ? Math.max(1, 44 * share) + "px" : "0";
      bar.style.background = `rgb(${colour(palette, share)})`;
      button.querySelector("small").textContent = percent(weight);
      button.classList.toggle("asks", query() === first + at);
    });
  }

  function drawCells(panel) {
    const most = Math.max(...models.flatMap((_, index) =>
      spec.shares[index].flat().map((cell) => cell[kind])), 1e-9);
    for (const { cell, layer, head } of panel.cells) {
      const share = spec.shares[panel.index][layer][head][kind], back = colour(palette, share / most);
      cell.style.background = `rgb(${back})`;
      cell.style.color = ink(back);
      cell.textContent = (100 * share).toFixed(0);
      const chosen = view.method === "attention" && view.layer === layer + 1;
      const pressed = chosen && (view.head === head || view.head < 0);
      cell.setAttribute("aria-pressed", String(pressed));
      cell.setAttribute("aria-label",
        `layer ${layer + 1} head ${head + 1}: ${percent(share)} ${spec.kinds[kind]}`);
      cell.tabIndex = layer === view.layer - 1 && head === Math.max(0, view.head) ? 0 : -1;
    }
  }

  function scored(weights, region) {
    let mass = 0, all = 0, area = 0, best = 0;
    region.cover.forEach((cover, patch) => {
      mass += cover * weights[patch + 1];
      all += weights[patch + 1];
      area += cover / patches;
      if (weights[patch + 1] > weights[best + 1]) best = patch;
    });
    const share = mass / Math.max(all, 1e-12), inside = region.cover[best] >= 0.5;
    return `${percent(share)} of the patches' weight lies on ${region.name}, ` +
      `which covers ${percent(area)} of the picture: ${(share / area).toFixed(2)} times as much as ` +
      `by chance; the strongest patch is ${inside ? "inside" : "outside"}.`;
  }

  function said(weights) {
    const image = weights.subarray(0, first).reduce((sum, w) => sum + w, 0);
    const all = Math.max(1e-12, weights.reduce((sum, w) => sum + w, 0));
    let patch = 0, word = 0;
    for (let at = 0; at < patches; at++) if (weights[at + 1] > weights[patch + 1]) patch = at;
    for (let at = 0; at < words.length; at++)
      if (weights[first + at] > weights[first + word]) word = at;
    const best = words.length
      ? `, word '${words[word]}' (${percent(weights[first + word])})` : "";
    return `${percent(image / all)} to the image, ${percent(1 - image / all)} to the text; most to ` +
      `${place(patch, grid)} (${percent(weights[patch + 1])})${best}`;
  }

  function draw() {
    const rows = panels.map((panel) => (panel.base ? row(panel.index) : null));
    const lines = [];
    panels.forEach((panel, index) => {
      drawCells(panel);
      const weights = rows[index];
      if (!weights) return;
      const most = Math.max(1e-12, ...weights.subarray(1)), shown = kept(weights);
      drawPatches(panel, weights, most, shown);
      drawWords(panel, weights, most, shown);
      const region = spec.regions[view.region];
      panel.score.textContent = region ? scored(weights, region) : "";
      lines.push((models.length > 1 ? `${panel.title}: ` : "") + said(weights));
    });
    if (lines.length) {
      const verb = view.method === "relevance" ? "owes" : "attends";
      line.textContent = `${name(query())} ${verb}: ${lines.join(". ")}.`;
    }
    const lacks = absent.get(key());
    note.textContent = lacks ? lacks : need() ? "…" : "";
    controls.layer.value = view.layer;
    controls.layerSaid.textContent = `${view.layer} of ${depth}`;
    controls.head.value = String(view.head);
    controls.method.value = view.method;
    controls.keep.value = view.keep;
    controls.keepSaid.textContent = `${view.keep}%`;
    controls.region.value = String(view.region);
    controls.head.disabled = view.method !== "attention";
    controls.layer.disabled = view.method === "relevance";
    const state = { query: query(), layer: view.layer, head: view.head, method: view.method };
    Object.assign(root.dataset, state, { ready: String(rows.every(Boolean)) });
  }

  // ---- events

  function hover(patch) {
    const token = patch === null ? null : patch + 1;
    if (token === hovered) return;
    hovered = token;
    draw();
    ask();
  }
  function change(event) {
    view = { ...view, ...event };
    draw();
    ask(view);
  }
  function pin(token) { // what the keyboard asks counts more than where the pointer rests
    hovered = null;
    change({ query: token });
  }

  const numbers = [...Array(heads).keys()].map((head) => [head, `head ${head + 1}`]);
  const regions = spec.regions.map((region, index) => [index, region.name]);
  const controls = {
    method: choice(spec.methods.map((m) => [m, m]), view.method, (method) => change({ method })),
    layer: slider(1, depth, 1, view.layer, (layer) => change({ layer })),
    layerSaid: node("output"),
    head: choice([[-1, "mean of all"], ...numbers], view.head,
      (head) => change({ head: Number(head) })),
    keep: slider(10, 100, 5, view.keep, (keep) => change({ keep })),
    keepSaid: node("output"),
    region: choice([[-1, "nothing"], ...regions], view.region,
      (region) => change({ region: Number(region) })),
    kind: choice(spec.kinds.map((text, index) => [index, text]), kind, (value) => {
      kind = Number(value);
      draw();
    }),
    cls: node("button", { onclick: () => pin(0) }, "[CLS]"),
  };
  root.addEventListener("keydown", (event) => {
    const { layer, head } = view, bound = (value, low, high) => Math.min(high, Math.max(low, value));
    const typed = event.target.matches("input, select");
    if (typed) return;
    if (event.key === "+") change({ layer: bound(layer + 1, 1, depth) });
    else if (event.key === "-") change({ layer: bound(layer - 1, 1, depth) });
    else if (event.key === "]") change({ head: bound(head + 1, -1, heads - 1) });
    else if (event.key === "[") change({ head: bound(head - 1, -1, heads - 1) });
    else if (event.key === "Escape") hover(null);
    else return;
    event.preventDefault();
  });
  root.append(
    node("div", { class: "row" }, labelled("show", controls.method),
      labelled("layer", controls.layer), controls.layerSaid, labelled("head", controls.head),
      labelled("strongest", controls.keep), controls.keepSaid, controls.cls),
    node("div", { class: "row" },
      ...(regions.length ? [labelled("score against", controls.region)] : []),
      labelled("numbers of the grid:", controls.kind)),
    line, note, node("div", { class: "panels" }, ...panels.map((panel) => panel.box)),
    node("p", {}, node("small", {},
      "Hover, or arrow keys on the picture and the words. Click or Enter keeps a token. " +
      "+ and - change the layer, [ and ] the head, Home asks as [CLS].")));
  model.on("change:view", () => {
    view = { ...model.get("view") };
    draw();
    ask();
  });
  draw();
  ask();
}

export default { render };
