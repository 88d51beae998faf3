// Shared by every explorer: Python puts this file before each of them, so each stays one module.

const OUTLINE = "rgb(213, 94, 0)", GREY = "rgb(150, 150, 150)", DIGITS = "11px sans-serif";
const STYLE = `
.mb3 { color: #222; background: #fff; font: 14px/1.4 sans-serif; padding: 8px; max-width: 1100px }
.mb3 button, .mb3 select, .mb3 input { font: inherit; color: inherit }
.mb3 .row { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; margin: 4px 0 }
.mb3 .panels { display: flex; flex-wrap: wrap; gap: 20px; align-items: flex-start }
.mb3 canvas { display: block; touch-action: none; cursor: crosshair }
.mb3 .words { display: flex; flex-wrap: wrap; gap: 4px; max-width: 420px; align-content: flex-start }
.mb3 .word { border: 1px solid #bbb; background: #fff; padding: 2px 5px; min-width: 58px;
  text-align: left; border-radius: 3px }
.mb3 .word small, .mb3 td button { font-size: 11px }
.mb3 .word i { display: block; height: 7px; border-radius: 1px }
.mb3 .word.asks { outline: 3px solid ${OUTLINE} }
.mb3 .word.gone { background: ${GREY}; color: #111 }
.mb3 :focus-visible { outline: 3px solid #000; outline-offset: 2px }
.mb3 td { padding: 0 } .mb3 th { font: 11px sans-serif; padding: 1px 3px }
.mb3 td button { border: 0; width: 34px; height: 22px; padding: 0 }
.mb3 td button[aria-pressed=true] { box-shadow: inset 0 0 0 3px ${OUTLINE} }
.mb3 h4 { margin: 4px 0 } .mb3 p { margin: 4px 0; min-height: 1.4em }
.mb3 .guesses { border-collapse: collapse } .mb3 .guesses td { padding: 1px 8px; font-size: 13px }
`;

// A DOM node. Texts only ever become text nodes: captions and words cannot turn into markup.
function node(tag, settings = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function labelled(text, control) {
  return node("label", {}, text + " ", control);
}

function choice(options, value, change) {
  const made = node("select", { onchange: () => change(made.value) });
  for (const [key, text] of options) made.append(node("option", { value: key }, text));
  made.value = String(value);
  return made;
}

function slider(low, high, step, value, change) {
  const settings = { type: "range", min: low, max: high, step, value };
  return node("input", { ...settings, oninput: (event) => change(Number(event.target.value)) });
}

// The box of an explorer. Keys that it uses must not reach JupyterLab, which would act on them.
function frame(el, title) {
  const root = node("section", { class: "mb3", "aria-label": title });
  root.addEventListener("keydown", (event) => event.stopPropagation());
  const style = node("style");
  style.textContent = STYLE;
  el.replaceChildren(style, root);
  return root;
}

function liveLine() {
  return node("p", { "aria-live": "polite", role: "status" });
}

function percent(share) {
  return (100 * share).toFixed(1) + "%";
}

function colour(palette, share) {
  const at = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
  return palette.slice(at, at + 3);
}

function ink([red, green, blue]) {
  return 0.3 * red + 0.6 * green + 0.1 * blue > 110 ? "#000" : "#fff";
}

// Questions to the kernel: one under way, and after its answer only the newest need is asked.
// need() names the answer that the present view lacks, or is null; ask(view) also tells the view.
function asker(model, need, answered) {
  let number = Math.floor(1e9 * Math.random()), waiting = false, untold = null;
  model.on("change:got", () => {
    const got = model.get("got");
    if (got.number !== number) return; // to another view of the same explorer
    waiting = false;
    answered(got, model.get("data"));
  });
  return function ask(view = null) {
    untold = view ?? untold;
    const key = need();
    if (waiting || (untold === null && key === null)) return;
    waiting = true;
    model.set("ask", { number: ++number, key, view: untold });
    untold = null;
    model.save_changes();
  };
}

// Patch under the pointer, or null outside the picture.
function patchAt(canvas, grid, event) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * grid);
  const row = Math.floor(((event.clientY - box.top) / box.height) * grid);
  const inside = row >= 0 && column >= 0 && row < grid && column < grid;
  return inside ? row * grid + column : null;
}

// Where an arrow key leads from a patch: another patch, or null for other keys.
function stepped(patch, key, grid) {
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!moves[key]) return null;
  const row = Math.floor(patch / grid) + moves[key][0], column = (patch % grid) + moves[key][1];
  return Math.min(grid - 1, Math.max(0, row)) * grid + Math.min(grid - 1, Math.max(0, column));
}

function place(patch, grid) {
  return `patch row ${Math.floor(patch / grid) + 1} column ${(patch % grid) + 1}`;
}

// A loaded picture as two canvases of `side` pixels: its colours and its greys.
function pictures(source, side, ready) {
  const image = new Image();
  image.onload = () => {
    const made = [node("canvas"), node("canvas")];
    for (const [index, canvas] of made.entries()) {
      canvas.width = canvas.height = side;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0, side, side);
      if (!index) continue;
      const pixels = context.getImageData(0, 0, side, side);
      for (let at = 0; at < pixels.data.length; at += 4) {
        const [red, green, blue] = pixels.data.subarray(at, at + 3);
        pixels.data.fill((red + green + blue) / 3, at, at + 3);
      }
      context.putImageData(pixels, 0, 0);
    }
    ready(...made);
  };
  image.src = source;
}
