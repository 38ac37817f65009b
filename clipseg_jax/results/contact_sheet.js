"use strict";
const data = JSON.parse(document.getElementById("clipseg_jax-results").textContent);
const byId = (id) => document.getElementById(id);
const [search, sort, grid] = ["search", "sort", "grid"].map(byId);
const colours = new Map(data.classes.map((each) => [each.key, `rgb(${each.color.join()})`]));
const names = new Map(data.classes.map((each) => [each.key, each.name]));
let chosen = null; // the class that is shown alone

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function swatch(key) {
  const made = element("span", { className: "swatch" });
  made.style.background = colours.get(key);
  return made;
}

function percent(share) {
  if (share < 0.001) return "<\u00a00.1\u00a0%";
  return `${share < 0.0995 ? (100 * share).toFixed(1) : Math.round(100 * share)}\u00a0%`;
}

// Classes of an image, the largest first.
function parts(image) {
  return Object.entries(image.classes || {})
    .filter(([key, part]) => colours.has(key) && part.share > 0)
    .sort((a, b) => b[1].share - a[1].share);
}

function card(image) {
  const found = parts(image);
  const picture = element("button", { className: "picture", type: "button" },
    element("img", { src: image.photo, alt: image.name, loading: "lazy" }),
    element("img", { src: image.mask, alt: "", className: "mask", loading: "lazy" }));
  picture.setAttribute("aria-pressed", "false");
  picture.setAttribute("aria-label", `${image.name}: hide the mask`);
  picture.onclick = () =>
    picture.setAttribute("aria-pressed", String(picture.getAttribute("aria-pressed") === "false"));
  const bar = element("div", { className: "shares" });
  for (const [key, part] of found) {
    const piece = element("span", { title: `${names.get(key)} ${percent(part.share)}` });
    piece.style.cssText = `width: ${100 * part.share}%; background: ${colours.get(key)}`;
    bar.append(piece);
  }
  return element("li", {}, picture, bar,
    element("p", { className: "name" }, element("a", { href: image.href, textContent: image.name })),
    element("p", { className: "figures" }));
}

// The chosen class with its mean score, or the largest classes.
function caption(image) {
  const found = parts(image);
  if (chosen !== null) {
    const part = image.classes[chosen];
    return `${names.get(chosen)} ${percent(part.share)}, score ${part.score.toFixed(2)}`;
  }
  const largest = found.slice(0, 3).map(([key, part]) => `${names.get(key)} ${percent(part.share)}`);
  if (found.length > 3) largest.push(`${found.length - 3} more`);
  return largest.join(", ") || "nothing found";
}

const images = data.images.map((image) => ({ image, item: card(image), text: image.name.toLowerCase() }));

// The share and mean score of the chosen class, or of all classes together.
function figures(image) {
  const counted = parts(image).filter(([key]) => chosen === null || key === chosen);
  const share = counted.reduce((sum, [, part]) => sum + part.share, 0);
  const score = counted.reduce((sum, [, part]) => sum + part.share * part.score, 0) / (share || 1);
  return { share, score };
}

const orders = {
  name: () => 0,
  share: (a, b) => b.share - a.share,
  score: (a, b) => a.score - b.score,
};

function show() {
  const wanted = search.value.trim().toLowerCase();
  const shown = images
    .map((each) => ({ ...each, ...figures(each.image) }))
    .filter((each) => each.text.includes(wanted) && (chosen === null || each.share > 0))
    .sort(orders[sort.value]);
  for (const each of shown) each.item.querySelector(".figures").textContent = caption(each.image);
  grid.replaceChildren(...shown.map((each) => each.item));
  byId("count").textContent = `${shown.length} of ${images.length} shown`;
}

for (const each of data.classes) {
  const count = data.images.filter((image) => (image.classes || {})[each.key]?.share > 0).length;
  const button = element("button", { type: "button" }, swatch(each.key), `${each.name} ${count}`);
  button.setAttribute("aria-pressed", "false");
  button.title = `in ${count} images`;
  button.onclick = () => {
    chosen = chosen === each.key ? null : each.key;
    for (const other of byId("legend").children) {
      other.setAttribute("aria-pressed", String(other === button && chosen !== null));
    }
    show();
  };
  byId("legend").append(button);
}
search.oninput = sort.onchange = show;
byId("opacity").oninput = (event) => grid.style.setProperty("--masks", event.target.value / 100);
show();
