// The view of the radiograph: grey values through window and level, with a heat map and an outline on top.

const HEAT = heatColours();

/** Limits of window and level; at a window of 256 and a level of 128 every grey value is shown as it is. */
export const RANGES = { window: [8, 512], level: [0, 256] };

/** A grey picture from a data URL: {width, height, values: Uint8Array of width * height}. */
export async function greyOf(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const values = new Uint8Array(image.width * image.height);
  for (let i = 0; i < values.length; i++) values[i] = data[4 * i];
  return { width: image.width, height: image.height, values };
}

export class RadiographView {
  constructor(root, changed) {
    this.root = root;
    this.changed = changed; // called when the mouse has changed the view
    this.stage = root.querySelector("#stage");
    this.grey = root.querySelector("#grey");
    this.heat = root.querySelector("#heat");
    this.outline = root.querySelector("#outline");
    this.picture = null;
    this.reset();
    this.listen();
    new ResizeObserver(() => this.layout()).observe(root);
  }

  reset() {
    Object.assign(this, { window: 256, level: 128, invert: false, zoom: 1, x: 0, y: 0 });
  }

  /** Show a radiograph: `answer` from the server, `picture` and `maps` from greyOf. */
  show(answer, picture, maps) {
    this.picture = picture;
    this.maps = maps;
    Object.assign(this.grey, { width: picture.width, height: picture.height });
    this.pixels = new ImageData(picture.width, picture.height);
    const [left, top, width, height] = answer.box; // the radiograph on the outline's grid, whose pixels are centred on whole numbers
    this.outline.setAttribute("viewBox", `${left - 0.5} ${top - 0.5} ${width} ${height}`);
    for (const path of this.outline.querySelectorAll("path")) path.setAttribute("d", answer.outline);
    this.stage.hidden = false;
    this.draw();
    this.layout();
  }

  /** Keep window and level within their ranges. */
  limit() {
    for (const [name, [least, most]] of Object.entries(RANGES)) this[name] = Math.min(most, Math.max(least, this[name]));
  }

  /** Grey values through the window, by DICOM's linear formula (PS3.3 C.11.2.1.2): `window` grey values around `level`. */
  draw() {
    if (!this.picture) return;
    const table = new Uint8ClampedArray(256);
    for (let v = 0; v < 256; v++) {
      const shown = ((v - (this.level - 0.5)) * 255) / (this.window - 1) + 127.5;
      table[v] = this.invert ? 255 - shown : shown;
    }
    const { values } = this.picture;
    const words = new Uint32Array(this.pixels.data.buffer);
    for (let i = 0; i < values.length; i++) words[i] = 0xff000000 | (table[values[i]] * 0x010101);
    this.grey.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  drawHeat(name, strength) {
    const map = this.maps?.[name];
    this.heat.style.opacity = strength;
    if (!map || strength === 0) {
      this.heat.width = this.heat.height = 1;
      return;
    }
    Object.assign(this.heat, { width: map.width, height: map.height });
    const image = new ImageData(map.width, map.height);
    for (let i = 0; i < map.values.length; i++) image.data.set(HEAT[map.values[i]], 4 * i);
    this.heat.getContext("2d").putImageData(image, 0, 0);
  }

  /** Width and height of the whole radiograph at zoom 1, in pixels of the page. */
  fit() {
    const { width, height } = this.picture ?? { width: 1, height: 1 };
    const scale = Math.min(this.root.clientWidth / width, this.root.clientHeight / height);
    return [width * scale, height * scale];
  }

  /** Move and scale the stage by zoom and offset: how far the middle moved, as shares of the radiograph's width and height. */
  layout() {
    const [width, height] = this.fit().map((length) => length * this.zoom);
    const free = Math.max(0, (1 - 1 / this.zoom) / 2);
    this.x = Math.min(free, Math.max(-free, this.x));
    this.y = Math.min(free, Math.max(-free, this.y));
    const left = this.root.clientWidth / 2 - width * (0.5 + this.x);
    const top = this.root.clientHeight / 2 - height * (0.5 + this.y);
    this.stage.style.width = `${width}px`;
    this.stage.style.height = `${height}px`;
    this.stage.style.transform = `translate(${left}px, ${top}px)`;
    this.grey.style.imageRendering = this.picture && width > 4 * this.picture.width ? "pixelated" : "auto";
  }

  /** Zoom so that the point of the radiograph under (clientX, clientY) stays where it is; the middle without a point. */
  zoomTo(zoom, point) {
    zoom = Math.min(12, Math.max(1, zoom));
    if (point) {
      const box = this.root.getBoundingClientRect();
      const [width, height] = this.fit();
      const dx = (point.clientX - box.left - box.width / 2) / width;
      const dy = (point.clientY - box.top - box.height / 2) / height;
      this.x += dx / this.zoom - dx / zoom;
      this.y += dy / this.zoom - dy / zoom;
    }
    this.zoom = zoom;
    this.layout();
  }

  listen() {
    const { root } = this;
    root.addEventListener("contextmenu", (event) => event.preventDefault());
    root.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomTo(this.zoom * Math.exp(-event.deltaY / 500), event);
      this.changed();
    }, { passive: false });
    root.addEventListener("dblclick", () => { this.zoomTo(1); this.changed(); });
    root.addEventListener("pointerdown", (event) => {
      root.setPointerCapture(event.pointerId);
      this.drag = { windowing: event.shiftKey || event.button === 2 };
      root.classList.add("moving");
    });
    root.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      if (this.drag.windowing) {
        this.window += event.movementX;
        this.level += event.movementY / 2;
        this.limit();
        this.draw();
      } else {
        const [width, height] = this.fit();
        this.x -= event.movementX / (width * this.zoom);
        this.y -= event.movementY / (height * this.zoom);
        this.layout();
      }
      this.changed();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      root.addEventListener(name, () => { this.drag = null; root.classList.remove("moving"); });
    }
  }
}

/** 256 colours with growing opacity: nothing, dark red, orange, light yellow. */
function heatColours() {
  const stops = [[0, 60, 0, 20, 0], [0.25, 140, 10, 40, 110], [0.6, 240, 110, 20, 190], [1, 255, 240, 150, 235]];
  return Array.from({ length: 256 }, (_, v) => {
    const share = v / 255;
    const upper = stops.findIndex(([at]) => at >= share) || 1;
    const [a, b] = [stops[upper - 1], stops[upper]];
    const part = (share - a[0]) / (b[0] - a[0]);
    return [1, 2, 3, 4].map((i) => Math.round(a[i] + part * (b[i] - a[i])));
  });
}
