// A click on anything with a number tells the page which it was.
element.addEventListener('click', e => {
  const picked = e.target.closest('[data-i]')
  if (picked) trigger('click', {index: +picked.dataset.i})
})
