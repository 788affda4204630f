// White strokes over the aligned face; each one that ends is sent as a black and white picture.
let down = false
const canvas = () => element.querySelector('canvas')
element.addEventListener('pointerdown', e => { down = e.target == canvas(); if (down) e.preventDefault() })
element.addEventListener('pointermove', e => {
  const c = canvas()
  if (!down || e.target != c) return
  const box = c.getBoundingClientRect(), g = c.getContext('2d')
  g.fillStyle = 'white'; g.beginPath()
  g.arc((e.clientX - box.x) * c.width / box.width, (e.clientY - box.y) * c.height / box.height, c.width / 12, 0, 7); g.fill()
})
window.addEventListener('pointerup', () => {
  if (down && canvas()) trigger('input', {mask: canvas().toDataURL('image/png')})
  down = false
})
element.addEventListener('click', e => {
  if (!e.target.closest('button')) return
  canvas().getContext('2d').clearRect(0, 0, canvas().width, canvas().height)
  trigger('input', {mask: ''})
})
