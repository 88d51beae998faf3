// An exported explorer of drawn pictures: every kept setting of its controls has one.

const root = frame(document.getElementById("explorer"), FRAMES.name), line = liveLine();
const picture = node("img", { style: "max-width: 100%" });
const chosen = [...FRAMES.start];

function show() {
  const [source, alt] = FRAMES.frames[chosen.join(",")];
  picture.src = "data:image/png;base64," + FRAMES.pictures[source];
  picture.alt = line.textContent = alt;
}

const controls = FRAMES.controls.map(({ name, options }, index) =>
  labelled(name, choice(options.map((text, at) => [at, text]), chosen[index], (at) => {
    chosen[index] = Number(at);
    show();
  })));
root.append(node("div", { class: "row" }, ...controls), picture, line);
show();
