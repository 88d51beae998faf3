// MaskExplorer: brush over the picture, click words, and see what a model guesses for the hidden.
//
// spec: grid, words, picture (data URL), palette, far, most (largest block), fills (bool: a model
// guesses), fixed (names of controls that need a kernel which is not there).
// Answers: "mask|..." has hidden, a string of 0 and 1 (1 = hidden); "guess|..." has words and
// patches: rows {place, truth, best: [[name, probability], ...]}.

function render({ model, el }) {
  const spec = model.get("spec"), { grid, words, palette } = spec, patches = grid * grid;
  const side = grid * Math.max(8, Math.round(320 / grid)), step = side / grid;
  let view = { ...model.get("view") }, cursor = null, painting = null, last = null;
  const store = new Map(), absent = new Map();
  const root = frame(el, "Mask explorer"), line = liveLine(), note = node("p");
  line.style.minHeight = "3em"; // else the picture jumps under the pointer
  let bits = spec.hidden, base = null;

  // ---- what the kernel knows

  const maskKey = () =>
    ["mask", view.kind, view.ratio, view.block, view.aspect, view.seed].join("|");
  const guessKey = () => `guess|${bits}|${view.words}`;
  function need() {
    const key = view.brushed || store.has(maskKey()) ? guessKey() : maskKey();
    if (key.startsWith("guess") && (!spec.fills || painting !== null)) return null;
    return store.has(key) || absent.has(key) ? null : key;
  }
  const ask = asker(model, need, (got) => {
    if (got.error) absent.set(got.key, got.error);
    else if (got.key) store.set(got.key, got);
    if (store.size > 500) store.delete(store.keys().next().value);
    settle();
  });
  function settle() {
    bits = view.brushed || (store.has(maskKey()) ? store.get(maskKey()).hidden : bits);
    draw();
    ask();
  }
  function change(event) {
    view = { ...view, ...event };
    bits = view.brushed || (store.has(maskKey()) ? store.get(maskKey()).hidden : bits);
    draw();
    ask(view);
  }

  // ---- the picture

  const canvas = node("canvas", { tabindex: 0, role: "application", width: side, height: side });
  canvas.setAttribute("aria-label",
    "picture: arrow keys move over the patches, Space hides or shows one, drag to brush");
  const context = canvas.getContext("2d");
  pictures(spec.picture, side, (colours) => {
    base = colours;
    draw();
  });

  // Distance in patches to the nearest visible one, as in `hiding.nearest_visible`.
  function distance(patch) {
    let best = Infinity;
    for (let other = 0; other < patches; other++) {
      if (bits[other] === "1") continue;
      const down = Math.floor(patch / grid) - Math.floor(other / grid);
      best = Math.min(best, Math.hypot(down, (patch % grid) - (other % grid)));
    }
    return best;
  }
  function label(text, patch, fill) {
    context.fillStyle = fill;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `${Math.max(8, step * 0.4)}px sans-serif`;
    context.fillText(text, ((patch % grid) + 0.5) * step, (Math.floor(patch / grid) + 0.5) * step);
  }
  function drawPicture(guesses) {
    const guess = new Map((guesses?.patches ?? []).map((row) => [row.place, row]));
    context.drawImage(base, 0, 0);
    for (let patch = 0; patch < patches; patch++) {
      const x = (patch % grid) * step, y = Math.floor(patch / grid) * step;
      context.strokeStyle = "rgba(255, 255, 255, 0.35)";
      context.lineWidth = 1;
      context.strokeRect(x + 0.5, y + 0.5, step - 1, step - 1);
      if (bits[patch] !== "1") continue;
      const far = view.show === "distance" ? distance(patch) : 0;
      const back = view.show === "distance" ? colour(palette, far / spec.far) : [150, 150, 150];
      context.fillStyle = `rgb(${back})`;
      context.fillRect(x, y, step, step);
      if (view.show === "distance") label(far === Infinity ? "∞" : far.toFixed(1).replace(".0", ""),
        patch, ink(back));
      else if (guess.has(patch)) label(right(guess.get(patch)) ? "✓" : "✗", patch, "#000");
    }
    if (cursor === null) return;
    context.strokeStyle = OUTLINE;
    context.lineWidth = 3;
    context.strokeRect((cursor % grid) * step + 1.5, Math.floor(cursor / grid) * step + 1.5,
      step - 3, step - 3);
  }
  const right = (row) => row.truth !== null && row.best[0][0] === row.truth;

  // ---- guesses

  const table = node("table", { class: "guesses", "aria-label": "guesses of the model" });
  function guessRow(title, row) {
    const cells = row.best.map(([name, chance]) =>
      node("td", {}, `${name === row.truth ? "✓ " : ""}${name} ${percent(chance)}`));
    const truth = row.truth === null ? "" : `truth: ${row.truth}`;
    return node("tr", {}, node("td", {}, title), ...cells, node("td", {}, truth));
  }
  function drawGuesses(guesses) {
    const rows = (guesses?.words ?? []).map((row) => guessRow(`word ${row.place + 1}`, row));
    const patch = (guesses?.patches ?? []).find((row) => row.place === cursor);
    if (patch) rows.push(guessRow(place(cursor, grid), patch));
    table.replaceChildren(...rows);
  }
  function said(guesses) {
    const count = [...bits].filter((bit) => bit === "1").length;
    let text = `${count} of ${patches} patches hidden`;
    const gone = [...view.words].filter((bit) => bit === "1").length;
    if (words.length) text += `, ${gone} of ${words.length} words hidden`;
    const best = (row) => `${row.best[0][0]} (${percent(row.best[0][1])})`;
    if (guesses) {
      const hits = guesses.patches.filter(right).length;
      if (guesses.patches.length) text += `; ${hits} of ${guesses.patches.length} codes guessed`;
      for (const row of guesses.words)
        text += `; word ${row.place + 1}: ${best(row)}, truth ${row.truth}`;
    }
    if (cursor !== null) {
      const row = guesses?.patches.find((found) => found.place === cursor);
      text += `. ${place(cursor, grid)} is ${bits[cursor] === "1" ? "hidden" : "visible"}`;
      if (row) text += `: code ${best(row)}${row.truth === null ? "" : `, truth ${row.truth}`}`;
    }
    return text + ".";
  }

  const buttons = words.map((word, at) => {
    const button = node("button", { class: "word", tabindex: at ? -1 : 0 }, word);
    button.addEventListener("click", () => change({ words: flipped(view.words, at) }));
    button.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      buttons[(at + move + words.length) % words.length].focus();
    });
    return button;
  });
  const flipped = (text, at, bit = text[at] === "1" ? "0" : "1") =>
    text.slice(0, at) + bit + text.slice(at + 1);

  function draw() {
    const guesses = store.get(guessKey());
    if (base) drawPicture(guesses);
    drawGuesses(guesses);
    buttons.forEach((button, at) => {
      const gone = view.words[at] === "1";
      button.classList.toggle("gone", gone);
      button.setAttribute("aria-pressed", String(gone));
      button.setAttribute("aria-label", `word ${at + 1}, ${words[at]}, ${gone ? "hidden" : "shown"}`);
      button.textContent = gone ? "[mask]" : words[at];
    });
    line.textContent = said(guesses);
    note.textContent = absent.get(view.brushed ? guessKey() : maskKey()) ??
      absent.get(guessKey()) ?? (need() ? "…" : "");
    for (const name of ["kind", "show"]) controls[name].value = view[name];
    for (const name of ["ratio", "block", "aspect", "seed"]) {
      controls[name].value = view[name];
      outputs[name].textContent = String(view[name]);
      controls[name].disabled = spec.fixed.includes(name);
    }
    Object.assign(root.dataset, { hiddenBits: bits, words: view.words, cursor: cursor ?? "" });
    root.dataset.ready = String(Boolean(base) && need() === null);
  }

  // ---- brush

  function paint(patch) {
    if (patch === null || bits[patch] === painting) return;
    bits = flipped(bits, patch, painting);
    view = { ...view, brushed: bits };
  }
  canvas.addEventListener("pointerdown", (event) => {
    const patch = patchAt(canvas, grid, event);
    if (patch === null) return;
    canvas.setPointerCapture(event.pointerId);
    painting = bits[patch] === "1" ? "0" : "1";
    last = event;
    paint(patch);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    cursor = patchAt(canvas, grid, event);
    if (painting !== null) {
      for (let part = 1; part <= 16; part++) { // a fast stroke leaves no gaps
        const between = (name) => last[name] + ((event[name] - last[name]) * part) / 16;
        paint(patchAt(canvas, grid, { clientX: between("clientX"), clientY: between("clientY") }));
      }
      last = event;
    }
    draw();
  });
  function stop() {
    if (painting === null) return;
    painting = null;
    change({ brushed: bits });
  }
  canvas.addEventListener("pointerup", stop);
  canvas.addEventListener("pointercancel", stop);
  canvas.addEventListener("pointerleave", () => {
    cursor = null;
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const next = stepped(cursor ?? 0, event.key, grid);
    if (next !== null) cursor = cursor === null ? 0 : next;
    else if (event.key === " " || event.key === "Enter")
      return event.preventDefault(), change({ brushed: flipped(bits, cursor ?? 0) });
    else return;
    event.preventDefault();
    draw();
  });

  // ---- controls

  const set = (name) => (value) => change({ [name]: value, brushed: "" });
  const controls = {
    kind: choice([["block-wise", "block-wise"], ["random", "random"]], view.kind, set("kind")),
    show: choice([["cover", "cover"], ["distance", "distance to the nearest visible"]], view.show,
      (show) => change({ show })),
    ratio: slider(0, 0.9, 0.05, view.ratio, set("ratio")),
    block: slider(1, spec.most, 1, view.block, set("block")),
    aspect: slider(0.1, 1, 0.05, view.aspect, set("aspect")),
    seed: slider(0, 20, 1, view.seed, set("seed")),
  };
  const outputs = {};
  const sliders = ["ratio", "block", "aspect", "seed"].map((name) => {
    outputs[name] = node("output");
    return node("span", {}, labelled(name === "block" ? "min block" : name, controls[name]),
      " ", outputs[name]);
  });
  const all = (bit) => bit.repeat(patches);
  root.append(
    node("div", { class: "row" }, labelled("mask", controls.kind), labelled("show", controls.show),
      node("button", { onclick: () => change({ brushed: "" }) }, "undo brush"),
      node("button", { onclick: () => change({ brushed: all("0") }) }, "show all"),
      node("button", { onclick: () => change({ brushed: all("1") }) }, "hide all")),
    node("div", { class: "row" }, ...sliders), line, note,
    node("div", { class: "panels" }, canvas,
      node("div", {}, node("div", { class: "words", role: "group", "aria-label": "caption" },
        ...buttons), table)),
    node("p", {}, node("small", {}, "Drag to hide or show patches, click a word to hide it. On " +
      "the picture: arrow keys, then Space.")));
  model.on("change:view", () => {
    view = { ...model.get("view") };
    settle();
  });
  settle();
}

export default { render };
